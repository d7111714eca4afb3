//! Beside the resource: joins, holds the tunnel, serves SSH sessions, records them.
