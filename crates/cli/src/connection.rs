//! A command's connection to the Auth Service: a runtime of one thread, made when the command needs it, and the API client.

use client::api::Api;
use std::future::Future;
use tokio::runtime::{Builder, Runtime};
use types::{ClusterName, Code, Public};

/// Open for one command.
pub(crate) struct Connection {
    runtime: Runtime,
    api: Api,
    pub(crate) cluster: ClusterName,
}

impl Connection {
    /// Takes an API client made inside `runtime`.
    pub(crate) fn new(runtime: Runtime, api: Api, cluster: ClusterName) -> Self {
        Self { runtime, api, cluster }
    }
    pub(crate) fn api(&self) -> &Api {
        &self.api
    }
    /// Runs to the end.
    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// A small runtime: commands do one thing.
pub(crate) fn runtime() -> Result<Runtime, Public> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Public::new(Code::Internal, format!("the runtime cannot start: {error}")))
}
