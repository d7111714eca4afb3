//! The API as lines: one for each service, call, message, field, choice and value, from the compiled `.proto`.
//!
//! A field's line has its number and type, so that another number, another type or another label is another line: what protocol
//! buffers forbid shows as a line that is gone. Comments, order and options are not in it.

use crate::golden;
use crate::run::Root;
use anyhow::Result;
use std::collections::BTreeSet;

pub(super) fn lines(root: &Root) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for file in golden::descriptors(root)?.file {
        let package = file.package().to_owned();
        for service in &file.service {
            let name = format!("{package}.{}", service.name());
            lines.insert(format!("service {name}"));
            for call in &service.method {
                let stream = |streams: bool| if streams { "stream " } else { "" };
                let (input, output) = (call.input_type().trim_start_matches('.'), call.output_type().trim_start_matches('.'));
                let (up, down) = (stream(call.client_streaming()), stream(call.server_streaming()));
                lines.insert(format!("rpc {name}.{}({up}{input}) returns ({down}{output})", call.name()));
            }
        }
        for one in &file.enum_type {
            lines.extend(values(&format!("{package}.{}", one.name()), one.value.iter().map(|value| (value.name(), value.number()))));
        }
        let mut waiting: Vec<_> = file.message_type.iter().map(|message| (package.clone(), message)).collect();
        while let Some((scope, message)) = waiting.pop() {
            let name = format!("{scope}.{}", message.name());
            lines.insert(format!("message {name}"));
            for field in &message.field {
                let kind = match field.type_name() {
                    "" => field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
                    named => named.trim_start_matches('.').to_owned(),
                };
                let label = match field.label().as_str_name() {
                    "LABEL_REPEATED" => "repeated ",
                    _ if field.proto3_optional() => "optional ",
                    _ => "",
                };
                let choice = usize::try_from(field.oneof_index.unwrap_or(-1)).ok().filter(|_| !field.proto3_optional());
                let choice = choice.and_then(|index| message.oneof_decl.get(index)).map(|choice| format!(" in {}", choice.name()));
                lines.insert(format!("field {name}.{} = {}: {label}{kind}{}", field.name(), field.number(), choice.unwrap_or_default()));
            }
            for one in &message.enum_type {
                lines.extend(values(&format!("{name}.{}", one.name()), one.value.iter().map(|value| (value.name(), value.number()))));
            }
            waiting.extend(message.nested_type.iter().map(|nested| (name.clone(), nested)));
        }
    }
    Ok(lines)
}

fn values<'a>(name: &str, values: impl Iterator<Item = (&'a str, i32)>) -> Vec<String> {
    let head = format!("enum {name}");
    std::iter::once(head).chain(values.map(|(value, number)| format!("value {name}.{value} = {number}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_messages_and_fields_are_lines() {
        let lines = lines(&Root::find().unwrap()).unwrap();
        for line in [
            "service lockgate.v1.Auth",
            "rpc lockgate.v1.Auth.Watch(lockgate.v1.WatchRequest) returns (stream lockgate.v1.WatchEvent)",
            "message lockgate.v1.PingReply",
            "field lockgate.v1.PingReply.server_version = 2: string",
        ] {
            assert!(lines.contains(line), "{line} is missing in {lines:#?}");
        }
    }
}
