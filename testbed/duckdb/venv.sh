#!/bin/sh
# Puts DuckDB's Python package into the testbed's cache and prints the Python that has it.
#   testbed/duckdb/venv.sh
# The package is pinned in requirements.txt and comes as a wheel: nothing of it is built or run while it is installed. The cache is
# ${LULL_TESTBED:-.testbed}/duckdb/VERSION; what is there already is not fetched again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^duckdb==\([0-9.]*\).*/\1/p' "$here/requirements.txt")
[ -n "$version" ] || { echo "venv.sh: no version of duckdb is pinned in $here/requirements.txt" >&2; exit 2; }
cache=${LULL_TESTBED:-$here/../../.testbed}/duckdb
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
python=$cache/$version/bin/python

# Tests may ask at the same time.
exec 9>"$cache/.lock"
flock 9
if [ -e "$cache/$version/.complete" ]; then
    echo "$python"
    exit 0
fi
rm -rf "${cache:?}/$version"
python3 -m venv "$cache/$version" >&2 ||
    { echo "venv.sh: python3 could not make a virtual environment (package python3-venv)" >&2; exit 3; }
"$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps --require-virtualenv \
    -r "$here/requirements.txt" >&2 || { echo "venv.sh: pip could not fetch duckdb $version" >&2; exit 4; }
touch "$cache/$version/.complete"
echo "$python"
