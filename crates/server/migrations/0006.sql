-- A removal that has begun: some of the restore point's files may be gone, and nothing counts on it any more.
ALTER TABLE restore_points ADD COLUMN removing INTEGER NOT NULL DEFAULT 0;
