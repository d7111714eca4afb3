//! The Proxy Service: one TLS port, reverse tunnels, SSH gateway, web API.
