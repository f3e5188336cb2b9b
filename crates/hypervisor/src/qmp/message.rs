//! One line of QMP: what QEMU may send and what we send. Pure; knows nothing of sockets.

use serde::Deserialize;
use serde_json::{Value, json};

/// The version QEMU greets with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct QemuVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

/// Something that happened in QEMU without being asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// For instance `BLOCK_JOB_ERROR`.
    pub name: String,
    /// The event's own fields; `null` if it has none.
    pub data: Value,
}

/// A line from QEMU, understood.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    Greeting(QemuVersion),
    Event(QmpEvent),
    Return { id: u64, value: Value },
    Error { id: Option<u64>, class: String, desc: String },
}

#[derive(Deserialize)]
struct Greeting {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: QemuVersion,
}

#[derive(Deserialize)]
struct ErrorBody {
    class: String,
    desc: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    qmp: Option<Greeting>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    error: Option<ErrorBody>,
    id: Option<Value>,
}

/// Understands one line (without its line end). The error says what is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Incoming, String> {
    let mut value: Value = serde_json::from_slice(line).map_err(|e| format!("not JSON ({e}): {}", excerpt(line)))?;
    let returned = value.as_object_mut().and_then(|o| o.remove("return"));
    let fields: Line = serde_json::from_value(value).map_err(|e| format!("not QMP ({e}): {}", excerpt(line)))?;
    let id = fields.id.as_ref().and_then(Value::as_u64);
    match (fields.qmp, fields.event, returned, fields.error) {
        (Some(greeting), _, _, _) => Ok(Incoming::Greeting(greeting.version.qemu)),
        (_, Some(name), _, _) => Ok(Incoming::Event(QmpEvent { name, data: fields.data })),
        (_, _, Some(value), _) => match id {
            Some(id) => Ok(Incoming::Return { id, value }),
            None => Err(format!("an answer without an id: {}", excerpt(line))),
        },
        (_, _, _, Some(e)) => Ok(Incoming::Error { id, class: e.class, desc: e.desc }),
        _ => Err(format!("neither greeting, event nor answer: {}", excerpt(line))),
    }
}

/// One command as a line, with its line end.
pub(crate) fn command_line(id: u64, command: &str, arguments: &Value) -> Vec<u8> {
    let value = if arguments.is_null() {
        json!({"execute": command, "id": id})
    } else {
        json!({"execute": command, "arguments": arguments, "id": id})
    };
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn excerpt(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(120)]).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lines_qemu_sends_are_understood() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Ok(Incoming::Greeting(QemuVersion { major: 10, minor: 0, micro: 2 })));
        let event = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#;
        assert_eq!(parse(event), Ok(Incoming::Event(QmpEvent { name: "STOP".into(), data: Value::Null })));
        assert_eq!(parse(br#"{"return": {}, "id": 7}"#), Ok(Incoming::Return { id: 7, value: json!({}) }));
        assert_eq!(
            parse(br#"{"id": 3, "error": {"class": "GenericError", "desc": "no"}}"#),
            Ok(Incoming::Error { id: Some(3), class: "GenericError".into(), desc: "no".into() })
        );
        assert!(parse(br#"{"return": {}}"#).unwrap_err().contains("without an id"));
        assert!(parse(b"hello").unwrap_err().contains("not JSON"));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}
