//! Pure decisions: infrastructure, job to tasks, proxy selection, session state machine, consistency level, licence.
