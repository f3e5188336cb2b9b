-- Ids are hyphenated UUIDs, times microseconds since 1970, documents JSON.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE managed_servers (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL UNIQUE,
    is_backup_server INTEGER NOT NULL,
    role_enabled     INTEGER NOT NULL,
    added_us         INTEGER NOT NULL
) STRICT;

CREATE TABLE hosts (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    qemu_dir     TEXT NOT NULL UNIQUE,
    fleecing_dir TEXT NOT NULL,
    problem      TEXT,
    looked_us    INTEGER
) STRICT;

CREATE TABLE credentials (
    id                 TEXT PRIMARY KEY,
    name               TEXT NOT NULL UNIQUE,
    user               TEXT NOT NULL,
    elevation          TEXT NOT NULL,
    revision           INTEGER NOT NULL,
    password           BLOB, -- sealed, as all secrets
    private_key        BLOB,
    passphrase         BLOB,
    elevation_password BLOB,
    changed_us         INTEGER NOT NULL
) STRICT;

CREATE TABLE vms (
    id         TEXT PRIMARY KEY,
    host       TEXT NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    guest_os   TEXT,
    addresses  TEXT NOT NULL,
    connect    TEXT,
    credential TEXT REFERENCES credentials (id) ON DELETE RESTRICT,
    state      TEXT NOT NULL,
    disks      TEXT NOT NULL,
    UNIQUE (host, name)
) STRICT;

-- One pinned key for each VM, and the last one that was refused.
CREATE TABLE host_keys (
    vm          TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    pinned      INTEGER NOT NULL,
    algorithm   TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    public_key  TEXT NOT NULL,
    seen_us     INTEGER NOT NULL,
    PRIMARY KEY (vm, pinned)
) STRICT, WITHOUT ROWID;

-- A guest refused this credential: it rests there until it is changed or released.
CREATE TABLE credential_rests (
    credential TEXT NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
    vm         TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    doc        TEXT NOT NULL,
    PRIMARY KEY (credential, vm)
) STRICT, WITHOUT ROWID;

CREATE TABLE proxy_failures (
    vm     TEXT NOT NULL,
    server TEXT NOT NULL,
    doc    TEXT NOT NULL,
    PRIMARY KEY (vm, server)
) STRICT, WITHOUT ROWID;

CREATE TABLE repositories (
    id   TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE jobs (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    repository TEXT NOT NULL REFERENCES repositories (id) ON DELETE RESTRICT,
    doc        TEXT NOT NULL
) STRICT;

CREATE TABLE job_vms (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    vm  TEXT NOT NULL REFERENCES vms (id) ON DELETE RESTRICT,
    PRIMARY KEY (job, vm)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT NOT NULL,
    job        TEXT,
    job_name   TEXT,
    state      TEXT NOT NULL, -- engine: SessionState
    open       INTEGER NOT NULL,
    result     TEXT,
    started_us INTEGER NOT NULL,
    ended_us   INTEGER,
    last_event INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_by_job ON sessions (job, id);

CREATE TABLE tasks (
    id       TEXT PRIMARY KEY,
    session  INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    vm       TEXT NOT NULL,
    vm_name  TEXT NOT NULL,
    work     TEXT NOT NULL, -- what is to be done
    state    TEXT NOT NULL, -- engine: TaskState, which holds what is owed
    open     INTEGER NOT NULL, -- not finished
    held     INTEGER NOT NULL, -- given to a proxy, or being recovered: something may be owed to the guest
    outcome  TEXT           -- what came of it, for people
) STRICT;
CREATE INDEX tasks_by_session ON tasks (session, position);
CREATE INDEX tasks_open ON tasks (vm) WHERE open = 1;
-- One proxy at a time works on a VM, whatever else goes wrong.
CREATE UNIQUE INDEX tasks_one_held_per_vm ON tasks (vm) WHERE held = 1;

CREATE TABLE events (
    session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq     INTEGER NOT NULL,
    doc     TEXT NOT NULL,
    PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;

-- Names are kept beside ids: a restore point outlives its VM and its job.
CREATE TABLE restore_points (
    id            TEXT PRIMARY KEY,
    vm            TEXT NOT NULL,
    vm_name       TEXT NOT NULL,
    job_name      TEXT,
    session       INTEGER NOT NULL,
    task          TEXT NOT NULL,
    repository    TEXT NOT NULL REFERENCES repositories (id) ON DELETE RESTRICT,
    created_us    INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    level         TEXT NOT NULL,
    level_reasons TEXT NOT NULL,
    directory     TEXT NOT NULL,
    disks         TEXT NOT NULL,
    bytes         INTEGER NOT NULL,
    bitmap        TEXT NOT NULL,
    verified      TEXT
) STRICT;
CREATE INDEX restore_points_by_vm ON restore_points (vm, created_us);
