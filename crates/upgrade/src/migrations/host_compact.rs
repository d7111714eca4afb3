//! `2-host-compact`: a host's record in the books takes less than half of the bytes.
//!
//! There is one for each host, and it is written at each renewal of each certificate: in a cluster of a hundred thousand these are the most
//! rows that are no heartbeats, in a store whose size may be bounded (etcd: 2 GiB unless it is told otherwise). As JSON more than half of
//! it are names of fields and a digest in hexadecimal. Now it is
//!
//! ```text
//! 0x01, name, digest of the key (32 bytes), newest, used, how many names, each of them, what else was in it as JSON or nothing
//! ```
//!
//! where numbers and the lengths before texts are LEB128: seven bits a byte, the lowest first. The first byte is the format's: no JSON
//! begins with it. [`write`] and [`read`] are also what the Auth Service writes and reads by.

use crate::control::final_of;
use crate::migrate::definition::{Change, Form, Migration};
use serde_json::{Map, Value};

pub(crate) const HOST_COMPACT: Migration = Migration {
    id: "2-host-compact",
    about: "a host's record in the books takes less than half of the bytes",
    from: final_of(1),
    to: final_of(2),
    floor: 1,
    change: Change::InPlace { dir: "internal/host", form: Form::Bytes { up, down } },
    repair: None,
    source: include_str!("host_compact.rs"),
};

const FORMAT: u8 = 1;
const DIGEST: usize = 32;

fn up(json: &[u8]) -> Result<Vec<u8>, String> {
    write(serde_json::from_slice(json).map_err(|error| error.to_string())?)
}

fn down(bytes: &[u8]) -> Result<Vec<u8>, String> {
    serde_json::to_vec(&read(bytes)?).map_err(|error| error.to_string())
}

/// The compact form of a record; what it has besides the known fields goes along.
pub fn write(mut record: Map<String, Value>) -> Result<Vec<u8>, String> {
    // Not `remove`, which moves the last of the others into the gap.
    let mut take = |field: &str| record.shift_remove(field).ok_or_else(|| format!("it has no {field}"));
    let (name, key, names) = (take("name")?, take("key")?, take("names")?);
    let (newest, used) = (take("newest")?, take("used")?);
    let mut bytes = vec![FORMAT];
    put_text(&mut bytes, &name)?;
    bytes.extend(digest(&key)?);
    for number in [newest, used] {
        put_number(&mut bytes, number.as_u64().ok_or("a generation is no number")?);
    }
    let names = names.as_array().ok_or("its names are no list")?;
    put_number(&mut bytes, names.len() as u64);
    names.iter().try_for_each(|name| put_text(&mut bytes, name))?;
    if !record.is_empty() {
        bytes.extend(serde_json::to_vec(&record).map_err(|error| error.to_string())?);
    }
    Ok(bytes)
}

/// The record in its compact form.
pub fn read(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let (format, mut rest) = bytes.split_first().ok_or("it is empty")?;
    if *format != FORMAT {
        return Err(format!("its format is {format}, and {FORMAT} is what is known here"));
    }
    let mut record = Map::new();
    record.insert("name".into(), text(&mut rest)?.into());
    let digest = split(&mut rest, DIGEST)?;
    record.insert("key".into(), digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into());
    let (newest, used) = (number(&mut rest)?, number(&mut rest)?);
    let names = (0..number(&mut rest)?).map(|_| text(&mut rest).map(Value::from)).collect::<Result<Vec<_>, _>>()?;
    record.insert("names".into(), names.into());
    record.insert("newest".into(), newest.into());
    record.insert("used".into(), used.into());
    if !rest.is_empty() {
        record.extend(serde_json::from_slice::<Map<_, _>>(rest).map_err(|error| error.to_string())?);
    }
    Ok(record)
}

fn digest(key: &Value) -> Result<Vec<u8>, String> {
    let text = key.as_str().unwrap_or_default();
    let digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 2 * DIGEST || !text.as_bytes().iter().all(digit) {
        return Err("its key is no digest".into());
    }
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or_default());
    pairs.map(|pair| u8::from_str_radix(pair, 16).map_err(|error| error.to_string())).collect()
}

fn put_text(bytes: &mut Vec<u8>, text: &Value) -> Result<(), String> {
    let text = text.as_str().ok_or("a name is no text")?;
    put_number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn split<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (head, tail) = rest.split_at_checked(length).ok_or("it is cut off")?;
    *rest = tail;
    Ok(head)
}

fn text(rest: &mut &[u8]) -> Result<String, String> {
    let length = number(rest)?;
    let bytes = split(rest, usize::try_from(length).unwrap_or(usize::MAX))?;
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}

fn number(rest: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0u64;
    for place in (0..u64::BITS).step_by(7) {
        let byte = *split(rest, 1)?.first().ok_or("it is cut off")?;
        let part = u64::from(byte & 0x7f);
        let shifted = part.checked_shl(place).filter(|shifted| shifted >> place == part).ok_or("a number is too large")?;
        number |= shifted;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number is too long".into())
}
