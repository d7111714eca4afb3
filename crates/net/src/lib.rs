//! The only place with sockets, TLS set-up, clocks and tasks.
