//! The Auth Service: keeps state, issues every certificate, takes the audit log and the recordings.
