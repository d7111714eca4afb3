//! Standard input and output as asynchronous streams that neither hold the program at its end nor disturb its neighbours.
//!
//! A pipe is opened anew through `/proc`, which gives it a non-blocking mode of its own: the mode of descriptor 0 itself is
//! shared with the shell and every other process of the pipeline. Everything else (terminals, files, sockets) is read and
//! written by a thread of the runtime; that thread may be stuck in `read` at the end, so whoever uses this ends the runtime
//! with `shutdown_background`.

use tokio::{
    io::{AsyncRead, AsyncWrite, stderr, stdin, stdout},
    net::unix::pipe,
};

pub(in crate::tsh) type Input = Box<dyn AsyncRead + Send + Unpin>;
pub(in crate::tsh) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Standard input. Inside a runtime.
pub(in crate::tsh) fn input() -> Input {
    match pipe::OpenOptions::new().open_receiver("/proc/self/fd/0") {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(stdin()),
    }
}

/// Standard output.
pub(in crate::tsh) fn output() -> Output {
    match pipe::OpenOptions::new().open_sender("/proc/self/fd/1") {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(stdout()),
    }
}

/// Standard error.
pub(in crate::tsh) fn errors() -> Output {
    match pipe::OpenOptions::new().open_sender("/proc/self/fd/2") {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(stderr()),
    }
}
