//! The only way to talk to a cluster from outside: API client, watch-fed cache, profiles and keys, login, connect.
