-- Proxies on other machines. Keys are SHA-256 of the public key (SubjectPublicKeyInfo); both null: in this process, or revoked.
ALTER TABLE managed_servers ADD COLUMN key BLOB;
ALTER TABLE managed_servers ADD COLUMN next_key BLOB;
ALTER TABLE managed_servers ADD COLUMN certified_until_us INTEGER;
ALTER TABLE managed_servers ADD COLUMN revoked_us INTEGER;
-- What it said of itself last: lull_server::store::proxies::LastKnown.
ALTER TABLE managed_servers ADD COLUMN last_known TEXT;

-- Each is good for one machine. Of the secret a SHA-256 is kept.
CREATE TABLE join_tokens (
    id         TEXT PRIMARY KEY,
    secret     BLOB NOT NULL,
    name       TEXT,          -- of the managed server to be; null: as the machine says
    server     TEXT REFERENCES managed_servers (id) ON DELETE CASCADE, -- an existing one that joins again
    expires_us INTEGER NOT NULL,
    used_us    INTEGER,
    used_key   BLOB,          -- who may ask again, where the answer was lost; null as soon as that key counts no more
    used_by    TEXT,          -- name of the managed server that came of it
    used_server TEXT          -- its id, also when it is gone
) STRICT, WITHOUT ROWID;

-- The number of the last event of a proxy's that is recorded, within the task's last dispatch.
ALTER TABLE tasks ADD COLUMN heard INTEGER NOT NULL DEFAULT 0;

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
