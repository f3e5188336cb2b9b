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

suite fmt     -    'every Rust file is formatted'                                   formatted
suite clippy  -    'no lint warns, test code included'                              lint
suite scripts -    'shell and Python scripts parse; shellcheck finds nothing'       check_scripts
suite layers  -    'dependency rule, forgotten tests, paths named in documents'      cargo run --quiet --package xtask -- check
suite licences -   'licences, banned crates and sources of every dependency (deny.toml)'  licences
suite unit    -    'unit and scenario tests that need neither root nor guests'      unit_tests
suite sim     -    'a thousand simulated fleets with bad luck of every kind: nothing frozen past its lease, no task lost or done twice'  cargo run --quiet --package lull-sim -- --seeds 1000
suite guests  root,guests 'the guests of the testbed are what other suites take them for'  testbed/selftest.sh pg full systemd
suite freeze-loop root     'freeze, thaw and scripts of the component on loop-mounted file systems' rust_target lull-runtime freeze_loop -- --skip kill_matrix
suite large-tree root      'a folder of a million entries and a tree of five million, walked in 64 MiB' rust_target lull-runtime large_tree
suite kill-matrix root,guests 'who dies, stops or is cut, at which step of freeze and backup: two tables, with times to the thaw' kill_matrices
suite freeze-guest root,guests 'a guest with systemd, PAM and logind comes back from every fault'         rust_table lull-runtime freeze_guest
suite postgres root        'real PostgreSQL servers 10 to 18 against the application module' rust_target lull-runtime postgres_versions
suite hypervisor root,guests 'backups of real QEMU processes, and every fault on the way'   rust_target lull-hypervisor qemu
suite catalog -           'DuckDB reads the catalog as its format tells, and agrees with our search' rust_target lull-catalog duckdb
suite sshd    root        'an OpenSSH server on loopback: logins, refusals, host keys, noisy profiles'  rust_target lull-proxy local_sshd
suite channel root,guests  'SSH, elevation, deployment and receipt on real guests'          rust_target lull-proxy real_guest_ssh
suite deploy  root,guests 'deployment without residue on a real guest, whatever its folders allow'       rust_target lull-proxy real_guest_deploy
suite task root,guests     'whole tasks on a real guest, through the proxy'                 rust_target lull-proxy real_guest_task
suite index root,guests    'the files of a real guest, listed beside its backup'            rust_target lull-proxy real_guest_index
suite e2e root,guests      'the lull program on a real guest with bad luck of every kind: thawed, swept, the truth told' rust_table lull e2e the_whole_product
suite history root,guests  'day after day on a real guest: the catalog, and reboots, kills and missing disks between and within runs' rust_table lull e2e history
suite proxies root,guests  'proxies of their own, a real guest: killed, revoked, cut off, far away, on a slow line' rust_table lull e2e proxies_of_their_own
suite other-guests root,guests 'a whole job, its receipt and a clone that boots: guests with systemd, with LVM, XFS and ESP' rust_table lull e2e a_whole_job
suite managed-server root,guests 'machines with and without systemd become proxies and are left as they were' rust_target lull managed_server
suite fleet root,guests    'sites in network namespaces, slow and broken lines: what the fleet is tested on' testbed/selftest.sh relay fleet
suite demo guests          'the one command of the README, from nothing to proof'           ./demo --check
suite demo-fleet root,guests 'the proxy tier: twenty guests at four sites, six proxies, one killed half-way'  ./demo fleet --check
