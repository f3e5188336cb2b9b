-- Each time a task was given to a proxy: what the load of the proxies over time is counted from. A name is kept beside its id, since the
-- work was done even if the server is gone. Why that proxy stands in the event of the same instant.
CREATE TABLE dispatches (
    task        TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    epoch       INTEGER NOT NULL,
    server      TEXT NOT NULL,
    server_name TEXT NOT NULL,
    tier        INTEGER, -- none: no proxy was needed to reach the guest
    begun_us    INTEGER NOT NULL,
    ended_us    INTEGER,
    ended       TEXT,    -- success, warning, failed, cancelled, or handed-on: another proxy took over
    PRIMARY KEY (task, epoch)
) STRICT, WITHOUT ROWID;
CREATE INDEX dispatches_by_end ON dispatches (ended_us);
-- What an administrator says of a managed server: whether it takes tasks (enabled, draining, disabled), and how many at once (nothing: as
-- many as its proxy says); and how many backups may run at once on a host or into a repository (nothing: the default; 0: no limit).
ALTER TABLE managed_servers ADD COLUMN duty TEXT NOT NULL DEFAULT 'enabled';
ALTER TABLE managed_servers ADD COLUMN slots_max INTEGER;
ALTER TABLE hosts ADD COLUMN tasks_max INTEGER;
ALTER TABLE repositories ADD COLUMN tasks_max INTEGER;
-- Addresses that the guest agent of a VM said last; what an administrator says stands in `addresses`, DNS names among it.
ALTER TABLE vms ADD COLUMN agent_addresses TEXT NOT NULL DEFAULT '[]';
