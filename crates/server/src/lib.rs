//! The backup server: store, runner, REST, recovery.
