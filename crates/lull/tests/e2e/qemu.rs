//! QEMU asked by its own socket, without Lull: what is named after us, whether the VM runs, and jobs of somebody else's.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to a QMP socket. QEMU takes one at a time.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    pub fn connect(socket: &Path) -> Qmp {
        let stream = UnixStream::connect(socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        let greeting = qmp.line();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        qmp.ask("qmp_capabilities", json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("QEMU answers within 20 s: its socket is free");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    /// The answer to a command, which must succeed.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        self.reader.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
        loop {
            let line = self.line();
            if line.get("error").is_some() {
                panic!("{command}: {line}");
            }
            if let Some(answer) = line.get("return") {
                return answer.clone();
            }
        }
    }

    /// Nodes, filters, jobs, exports and bitmaps whose names are ours.
    pub fn ours(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for node in self.ask("query-named-block-nodes", json!({})).as_array().unwrap() {
            found.push(node["node-name"].clone());
            found.extend(node["dirty-bitmaps"].as_array().into_iter().flatten().map(|bitmap| bitmap["name"].clone()));
        }
        for command in ["query-jobs", "query-block-exports"] {
            found.extend(self.ask(command, json!({})).as_array().unwrap().iter().map(|thing| thing["id"].clone()));
        }
        let mut ours: Vec<String> =
            found.iter().filter_map(Value::as_str).filter(|name| name.contains("lull")).map(str::to_string).collect();
        ours.sort();
        ours.dedup();
        ours
    }

    pub fn run_state(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap_or_default().to_string()
    }
}
