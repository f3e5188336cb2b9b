# shellcheck shell=bash
# suites.sh: the table of test suites that ./test runs, in this order. To be sourced by ./test.
#
#   suite NAME NEEDS 'what it shows' COMMAND...
#
# NEEDS is a comma-separated list, or -:
#   root     runs as root; an ordinary user's tests are built by the user and run through sudo
#   guests   needs QEMU and what builds guests (testbed/install.sh)
# A test target of Rust that needs root, guests or servers has required-features = ["testbed"] in its Cargo.toml and a line
# here (rust_target PACKAGE TARGET): `cargo xtask check` finds those that were forgotten. docs/testbed.md says more.

suite fmt     -    'every Rust file is formatted'                                   cargo fmt --all --check
suite clippy  -    'no lint warns, test code included'                              lint
suite scripts -    'shell and Python scripts parse; shellcheck finds nothing'       check_scripts
suite layers  -    'dependency rule, forgotten tests, paths named in documents'      cargo run --quiet --package xtask -- check
suite unit    -    'unit and scenario tests that need neither root nor guests'      unit_tests
suite freeze-loop root 'freeze and thaw on loop-mounted file systems, killed processes' rust_target lull-runtime freeze_loop
suite postgres    root 'real PostgreSQL servers 10 to 18 against the application module' rust_target lull-runtime postgres_versions
suite guests root,guests 'the guests of the testbed are what the other suites take them for' testbed/selftest.sh pg full systemd
