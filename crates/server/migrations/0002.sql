-- What the last task on a VM left is looked up before the next one begins.
CREATE INDEX tasks_by_vm ON tasks (vm, session);
