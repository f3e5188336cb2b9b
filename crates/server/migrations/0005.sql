-- Whom a job tells of its sessions stands in its document; what is still to be told stands here, from the end of the session
-- on, until it is told or given up. It keeps what it needs of the job, which may change or go meanwhile.
CREATE TABLE notifications (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    session  INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind     TEXT NOT NULL, -- webhook, command
    job      TEXT NOT NULL, -- address and secret are sealed for it
    target   TEXT NOT NULL, -- for people: scheme and host of the address, or the program's name
    address  TEXT,          -- of a webhook: sealed, as JSON
    secret   TEXT,          -- sealed, as JSON
    attempts INTEGER NOT NULL, -- that were begun
    due_us   INTEGER NOT NULL
) STRICT;
