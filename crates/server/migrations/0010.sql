-- Counts the changes of what is read of VMs, so that it need not be read again while nothing changed.
INSERT INTO counters (name, value) VALUES ('vms', 0);
CREATE TRIGGER vms_inserted AFTER INSERT ON vms BEGIN UPDATE counters SET value = value + 1 WHERE name = 'vms'; END;
CREATE TRIGGER vms_updated AFTER UPDATE ON vms BEGIN UPDATE counters SET value = value + 1 WHERE name = 'vms'; END;
CREATE TRIGGER vms_deleted AFTER DELETE ON vms BEGIN UPDATE counters SET value = value + 1 WHERE name = 'vms'; END;
CREATE TRIGGER hosts_deleted AFTER DELETE ON hosts BEGIN UPDATE counters SET value = value + 1 WHERE name = 'vms'; END;
CREATE TRIGGER hosts_updated AFTER UPDATE ON hosts BEGIN UPDATE counters SET value = value + 1 WHERE name = 'vms'; END;
