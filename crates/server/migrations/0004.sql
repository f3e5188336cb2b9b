-- Up to when the runs of a job's schedule were seen to, and the last one that did not begin.
CREATE TABLE job_clocks (
    job     TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    seen_us INTEGER NOT NULL,
    skipped TEXT
) STRICT, WITHOUT ROWID;
-- Failed tasks of a job that are tried again, and when.
CREATE TABLE retries (
    job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    doc TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- Who began a session, where it was no person; and whether what follows from its end was decided.
ALTER TABLE sessions ADD COLUMN begun_by TEXT;
ALTER TABLE sessions ADD COLUMN settled INTEGER NOT NULL DEFAULT 1;
CREATE INDEX sessions_unsettled ON sessions (id) WHERE settled = 0;
-- The job that made a restore point: its name can change, and a session's number says nothing in another database.
ALTER TABLE restore_points ADD COLUMN job TEXT;
UPDATE restore_points SET job = (
    SELECT sessions.job FROM tasks JOIN sessions ON sessions.id = tasks.session WHERE tasks.id = restore_points.task
);
-- Until now nobody could set this, and whatever stood there, a chain had 14 restore points.
UPDATE jobs SET doc = json_set(doc, '$.job.action.full_every', 14) WHERE json_extract(doc, '$.job.action.kind') = 'backup';
