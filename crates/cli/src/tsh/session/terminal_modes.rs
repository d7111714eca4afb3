//! The user's terminal settings in SSH's encoding (RFC 4254, section 8), so that the far terminal erases, interrupts and
//! echoes as this one does.

use client::ssh::PtyMode;
use rustix::termios::{InputModes, LocalModes, OutputModes, SpecialCodeIndex, Termios, tcgetattr};

const CODES: [(PtyMode, SpecialCodeIndex); 14] = [
    (PtyMode::VINTR, SpecialCodeIndex::VINTR),
    (PtyMode::VQUIT, SpecialCodeIndex::VQUIT),
    (PtyMode::VERASE, SpecialCodeIndex::VERASE),
    (PtyMode::VKILL, SpecialCodeIndex::VKILL),
    (PtyMode::VEOF, SpecialCodeIndex::VEOF),
    (PtyMode::VEOL, SpecialCodeIndex::VEOL),
    (PtyMode::VEOL2, SpecialCodeIndex::VEOL2),
    (PtyMode::VSTART, SpecialCodeIndex::VSTART),
    (PtyMode::VSTOP, SpecialCodeIndex::VSTOP),
    (PtyMode::VSUSP, SpecialCodeIndex::VSUSP),
    (PtyMode::VREPRINT, SpecialCodeIndex::VREPRINT),
    (PtyMode::VWERASE, SpecialCodeIndex::VWERASE),
    (PtyMode::VLNEXT, SpecialCodeIndex::VLNEXT),
    (PtyMode::VDISCARD, SpecialCodeIndex::VDISCARD),
];
const INPUT: [(PtyMode, InputModes); 8] = [
    (PtyMode::IGNPAR, InputModes::IGNPAR),
    (PtyMode::INLCR, InputModes::INLCR),
    (PtyMode::IGNCR, InputModes::IGNCR),
    (PtyMode::ICRNL, InputModes::ICRNL),
    (PtyMode::IXON, InputModes::IXON),
    (PtyMode::IXANY, InputModes::IXANY),
    (PtyMode::IXOFF, InputModes::IXOFF),
    (PtyMode::IUTF8, InputModes::IUTF8),
];
const LOCAL: [(PtyMode, LocalModes); 11] = [
    (PtyMode::ISIG, LocalModes::ISIG),
    (PtyMode::ICANON, LocalModes::ICANON),
    (PtyMode::ECHO, LocalModes::ECHO),
    (PtyMode::ECHOE, LocalModes::ECHOE),
    (PtyMode::ECHOK, LocalModes::ECHOK),
    (PtyMode::ECHONL, LocalModes::ECHONL),
    (PtyMode::NOFLSH, LocalModes::NOFLSH),
    (PtyMode::TOSTOP, LocalModes::TOSTOP),
    (PtyMode::IEXTEN, LocalModes::IEXTEN),
    (PtyMode::ECHOCTL, LocalModes::ECHOCTL),
    (PtyMode::ECHOKE, LocalModes::ECHOKE),
];
const OUTPUT: [(PtyMode, OutputModes); 4] = [
    (PtyMode::OPOST, OutputModes::OPOST),
    (PtyMode::ONLCR, OutputModes::ONLCR),
    (PtyMode::OCRNL, OutputModes::OCRNL),
    (PtyMode::ONLRET, OutputModes::ONLRET),
];

/// Of standard input as it is now, so before it is made raw; none when it is no terminal.
pub(super) fn of_stdin() -> Vec<(PtyMode, u32)> {
    tcgetattr(std::io::stdin()).map(|now| encode(&now)).unwrap_or_default()
}

fn encode(now: &Termios) -> Vec<(PtyMode, u32)> {
    let codes = CODES.iter().map(|&(mode, at)| (mode, code(now.special_codes[at])));
    let input = INPUT.iter().map(|&(mode, flag)| (mode, u32::from(now.input_modes.contains(flag))));
    let local = LOCAL.iter().map(|&(mode, flag)| (mode, u32::from(now.local_modes.contains(flag))));
    let output = OUTPUT.iter().map(|&(mode, flag)| (mode, u32::from(now.output_modes.contains(flag))));
    let speeds = [(PtyMode::TTY_OP_ISPEED, now.input_speed()), (PtyMode::TTY_OP_OSPEED, now.output_speed())];
    codes.chain(input).chain(local).chain(output).chain(speeds).collect()
}

/// 255 says that there is no such key (RFC 4254); here it is 0.
fn code(code: u8) -> u32 {
    if code == 0 { 255 } else { u32::from(code) }
}
