//! Pseudo-terminals: opening one for an account, its modes and size, and reading it without blocking.
//!
//! Modes arrive as opcodes of RFC 4254, section 8; unknown ones are left alone, and there are never more than russh's
//! bound (attack table, row 22).

use super::account::Account;
use bytes::BytesMut;
use russh::Pty as Op;
use rustix::{
    fs::{Gid, Mode, Uid},
    pty::OpenptFlags,
    termios::{ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex as Key, Termios, Winsize},
};
use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// What the client asked for with `pty-req`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) term: String,
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    pub(crate) modes: Vec<(Op, u32)>,
}

/// Our side of a terminal.
#[derive(Debug)]
pub(crate) struct Master(AsyncFd<OwnedFd>);

/// Opens a terminal owned by the account; returns our side, the program's side and the device's name.
pub(crate) fn open(wanted: &Wanted, account: &Account) -> io::Result<(Master, OwnedFd, OsString)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = OsString::from_vec(rustix::pty::ptsname(&master, Vec::new())?.into_bytes());
    // By descriptor, not by name: nothing can be swapped in between.
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if rustix::process::geteuid().is_root() {
        let group = nix::unistd::Group::from_name("tty").ok().flatten().map(|group| group.gid.as_raw());
        rustix::fs::fchown(&slave, Some(Uid::from_raw(account.uid)), Some(Gid::from_raw(group.unwrap_or(account.gid))))?;
        let mode = if group.is_some() { Mode::RUSR | Mode::WUSR | Mode::WGRP } else { Mode::RUSR | Mode::WUSR };
        rustix::fs::fchmod(&slave, mode)?;
    }
    let mut termios = rustix::termios::tcgetattr(&slave)?;
    apply(&mut termios, &wanted.modes);
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &termios)?;
    rustix::fs::fcntl_setfl(&master, rustix::fs::fcntl_getfl(&master)? | rustix::fs::OFlags::NONBLOCK)?;
    let master = Master(super::spawn::watch_fd(master)?);
    master.resize(wanted.columns, wanted.rows)?;
    Ok((master, slave, name))
}

impl Master {
    /// Reads all that is there, up to the buffer's spare capacity; zero at the end.
    pub(crate) async fn read(&self, into: &mut BytesMut) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let before = into.len();
            // A terminal gives at most 4 KiB at a time: several reads make one message.
            let mut piece = [0; 4096];
            while into.capacity().saturating_sub(into.len()) >= piece.len() {
                match rustix::io::read(self.0.get_ref(), &mut piece) {
                    Ok(0) => return Ok(into.len().saturating_sub(before)),
                    Ok(len) => into.extend_from_slice(piece.get(..len).unwrap_or_default()),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => {
                        if into.len() == before {
                            ready.clear_ready();
                        }
                        break;
                    }
                    // Linux says EIO when the last holder of the other side is gone.
                    Err(rustix::io::Errno::IO) => return Ok(into.len().saturating_sub(before)),
                    Err(error) => return Err(error.into()),
                }
            }
            if into.len() > before {
                return Ok(into.len().saturating_sub(before));
            }
        }
    }

    /// Writes all bytes.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Tells the terminal its size; the kernel tells the programs.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> io::Result<()> {
        let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: short(rows), ws_col: short(columns), ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref().as_fd(), size)?)
    }

    /// The character that means "end of input" now, when the terminal takes lines.
    pub(crate) fn end_of_input(&self) -> Option<u8> {
        let termios = rustix::termios::tcgetattr(self.0.get_ref()).ok()?;
        termios.local_modes.contains(LocalModes::ICANON).then(|| termios.special_codes[Key::VEOF])
    }
}

fn apply(termios: &mut Termios, modes: &[(Op, u32)]) {
    for (op, value) in modes {
        let on = *value != 0;
        if let Some(key) = key(*op) {
            // 255 means "no character" on the wire, 0 here.
            termios.special_codes[key] = u8::try_from(*value).ok().filter(|code| *code != 255).unwrap_or(0);
        } else if let Some(flag) = input(*op) {
            termios.input_modes.set(flag, on);
        } else if let Some(flag) = local(*op) {
            termios.local_modes.set(flag, on);
        } else if let Some(flag) = output(*op) {
            termios.output_modes.set(flag, on);
        } else if let Some((mask, flag)) = control(*op) {
            match (mask, on) {
                (Some(mask), true) => {
                    termios.control_modes.remove(mask);
                    termios.control_modes.insert(flag);
                }
                (Some(_), false) => {}
                (None, on) => termios.control_modes.set(flag, on),
            }
        }
    }
}

fn key(op: Op) -> Option<Key> {
    Some(match op {
        Op::VINTR => Key::VINTR,
        Op::VQUIT => Key::VQUIT,
        Op::VERASE => Key::VERASE,
        Op::VKILL => Key::VKILL,
        Op::VEOF => Key::VEOF,
        Op::VEOL => Key::VEOL,
        Op::VEOL2 => Key::VEOL2,
        Op::VSTART => Key::VSTART,
        Op::VSTOP => Key::VSTOP,
        Op::VSUSP => Key::VSUSP,
        Op::VREPRINT => Key::VREPRINT,
        Op::VWERASE => Key::VWERASE,
        Op::VLNEXT => Key::VLNEXT,
        Op::VDISCARD => Key::VDISCARD,
        _ => return None,
    })
}

fn input(op: Op) -> Option<InputModes> {
    Some(match op {
        Op::IGNPAR => InputModes::IGNPAR,
        Op::PARMRK => InputModes::PARMRK,
        Op::INPCK => InputModes::INPCK,
        Op::ISTRIP => InputModes::ISTRIP,
        Op::INLCR => InputModes::INLCR,
        Op::IGNCR => InputModes::IGNCR,
        Op::ICRNL => InputModes::ICRNL,
        Op::IUCLC => InputModes::IUCLC,
        Op::IXON => InputModes::IXON,
        Op::IXANY => InputModes::IXANY,
        Op::IXOFF => InputModes::IXOFF,
        Op::IMAXBEL => InputModes::IMAXBEL,
        Op::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local(op: Op) -> Option<LocalModes> {
    Some(match op {
        Op::ISIG => LocalModes::ISIG,
        Op::ICANON => LocalModes::ICANON,
        Op::XCASE => LocalModes::XCASE,
        Op::ECHO => LocalModes::ECHO,
        Op::ECHOE => LocalModes::ECHOE,
        Op::ECHOK => LocalModes::ECHOK,
        Op::ECHONL => LocalModes::ECHONL,
        Op::NOFLSH => LocalModes::NOFLSH,
        Op::TOSTOP => LocalModes::TOSTOP,
        Op::IEXTEN => LocalModes::IEXTEN,
        Op::ECHOCTL => LocalModes::ECHOCTL,
        Op::ECHOKE => LocalModes::ECHOKE,
        Op::PENDIN => LocalModes::PENDIN,
        _ => return None,
    })
}

fn output(op: Op) -> Option<OutputModes> {
    Some(match op {
        Op::OPOST => OutputModes::OPOST,
        Op::OLCUC => OutputModes::OLCUC,
        Op::ONLCR => OutputModes::ONLCR,
        Op::OCRNL => OutputModes::OCRNL,
        Op::ONOCR => OutputModes::ONOCR,
        Op::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}

/// With the mask of the field it belongs to, if it is one value of several.
fn control(op: Op) -> Option<(Option<ControlModes>, ControlModes)> {
    Some(match op {
        Op::CS7 => (Some(ControlModes::CSIZE), ControlModes::CS7),
        Op::CS8 => (Some(ControlModes::CSIZE), ControlModes::CS8),
        Op::PARENB => (None, ControlModes::PARENB),
        Op::PARODD => (None, ControlModes::PARODD),
        _ => return None,
    })
}
