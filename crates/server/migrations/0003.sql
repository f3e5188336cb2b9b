-- An incremental restore point builds on another one; a full one says why it is full.
ALTER TABLE restore_points ADD COLUMN parent TEXT;
ALTER TABLE restore_points ADD COLUMN full_because TEXT;
