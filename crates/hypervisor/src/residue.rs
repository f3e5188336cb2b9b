//! What of ours is inside a hypervisor right now, read afresh.
//!
//! [`residue_from`] is pure over QEMU's answers and believes nothing that a program remembers: the same look serves the undo of
//! a failed backup, the sweep after a crash and the receipt. Removes nothing.

use serde_json::{Value, json};

use crate::facts::{items, text};
use crate::names::{self, OurName, Role};
use crate::qmp::{Command, QmpClient, QmpError};

/// Time for one look, in ms.
const LOOK_MS: u64 = 30_000;

/// A job of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub id: String,
    pub status: String,
}

/// A guest device that writes through one of our filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Swapped {
    pub qdev: String,
    pub filter: String,
    /// The node the device wrote to before; `None` if the graph does not show it.
    pub original: Option<String>,
}

/// A dirty bitmap of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub node: String,
    pub name: String,
}

/// Everything of ours in one VM's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Residue {
    pub run_state: String,
    pub jobs: Vec<Job>,
    pub swapped: Vec<Swapped>,
    pub nodes: Vec<(OurName, String)>,
    pub bitmaps: Vec<Bitmap>,
    pub stop_markers: Vec<String>,
}

impl Residue {
    /// One line per thing, bitmaps that are owed left out.
    pub fn describe(&self, bitmaps_owed: &[String]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(self.jobs.iter().map(|j| format!("job {}", j.id)));
        lines.extend(self.swapped.iter().map(|s| format!("filter {} in front of {}", s.filter, s.qdev)));
        lines.extend(self.nodes.iter().map(|(_, n)| format!("node {n}")));
        let not_owed = self.bitmaps.iter().filter(|b| !bitmaps_owed.contains(&b.name));
        lines.extend(not_owed.map(|b| format!("bitmap {} on {}", b.name, b.node)));
        lines.extend(self.stop_markers.iter().map(|m| format!("stop marker {m}")));
        lines
    }

    /// Whether the VM is stopped, and by us.
    pub fn stopped_by_us(&self) -> bool {
        self.run_state == "paused" && !self.stop_markers.is_empty()
    }

    /// The nodes with this role.
    pub fn nodes_of(&self, role: Role) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(move |(n, _)| n.role == role).map(|(_, text)| text.as_str())
    }
}

/// QEMU's answers that the residue follows from.
pub(crate) struct Answers {
    pub status: Value,
    pub jobs: Value,
    pub block: Value,
    pub nodes: Value,
    pub graph: Value,
    pub objects: Value,
}

/// Looks; `restore_point` limits it to what belongs to that one.
pub(crate) async fn read(client: &QmpClient, restore_point: Option<&str>) -> Result<Residue, QmpError> {
    let commands: [Command; 6] = [
        ("query-status", Value::Null),
        ("query-jobs", Value::Null),
        ("query-block", Value::Null),
        ("query-named-block-nodes", json!({"flat": true})),
        // The only command that shows which node lies under a filter: stable since QEMU 4.0 in spite of its name.
        ("x-debug-query-block-graph", Value::Null),
        ("qom-list", json!({"path": "/objects"})),
    ];
    let mut answers = client.pipeline(&commands, LOOK_MS).await.into_iter();
    let mut next = || answers.next().unwrap_or(Ok(Value::Null));
    let answers =
        Answers { status: next()?, jobs: next()?, block: next()?, nodes: next()?, graph: next()?, objects: next()? };
    Ok(residue_from(&answers, restore_point))
}

/// What of ours QEMU's answers show.
pub(crate) fn residue_from(answers: &Answers, restore_point: Option<&str>) -> Residue {
    let wanted = |id: &str| restore_point.is_none_or(|only| only == id);
    let ours = |name: &str| names::parse(name).filter(|n| wanted(&n.restore_point));

    let jobs = items(&answers.jobs).filter_map(|j| {
        let id = text(&j["id"]).filter(|id| ours(id).is_some())?;
        Some(Job { id, status: text(&j["status"]).unwrap_or_default() })
    });
    let nodes = items(&answers.nodes).filter_map(|n| {
        let name = text(&n["node-name"])?;
        Some((ours(&name)?, name))
    });
    let swapped = items(&answers.block).filter_map(|drive| {
        let filter = text(&drive["inserted"]["node-name"]).filter(|n| ours(n).is_some())?;
        let qdev = text(&drive["qdev"])?;
        let qdev = if qdev.starts_with('/') { qdev } else { format!("/machine/peripheral/{qdev}") };
        let original = node_under(&answers.graph, &filter);
        Some(Swapped { qdev, filter, original })
    });
    let bitmaps = items(&answers.nodes).flat_map(|n| {
        items(&n["dirty-bitmaps"]).filter_map(|b| {
            let name = text(&b["name"]).filter(|name| names::parse_bitmap(name).is_some_and(wanted))?;
            Some(Bitmap { node: text(&n["node-name"])?, name })
        })
    });
    let stop_markers = items(&answers.objects)
        .filter_map(|o| text(&o["name"]).filter(|name| names::parse_stop_marker(name).is_some_and(wanted)));
    Residue {
        run_state: text(&answers.status["status"]).unwrap_or_default(),
        jobs: jobs.collect(),
        swapped: swapped.collect(),
        nodes: nodes.collect(),
        bitmaps: bitmaps.collect(),
        stop_markers: stop_markers.collect(),
    }
}

/// The node behind a filter's `file` edge.
fn node_under(graph: &Value, filter: &str) -> Option<String> {
    let node = items(&graph["nodes"]).find(|n| n["type"] == "block-driver" && n["name"] == filter)?;
    let edge = items(&graph["edges"]).find(|e| e["parent"] == node["id"] && e["name"] == "file")?;
    let below = items(&graph["nodes"]).find(|n| n["id"] == edge["child"])?;
    text(&below["name"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers {
            status: json!({"status": "paused"}),
            jobs: json!([{"id": "lull-ab-0-job", "status": "running"}, {"id": "nightly", "status": "running"}]),
            block: json!([
                {"device": "", "qdev": "sd0", "inserted": {"node-name": "lull-ab-0-cbw"}},
                {"device": "", "qdev": "/machine/peripheral/vd1/virtio-backend", "inserted": {"node-name": "disk1"}}]),
            nodes: json!([
                {"node-name": "lull-ab-0-cbw"}, {"node-name": "lull-cd-1-fleece"},
                {"node-name": "disk0", "dirty-bitmaps": [{"name": "lull-ab"}, {"name": "lull-cd"}, {"name": "theirs"}]}]),
            graph: json!({
                "nodes": [{"id": 1, "type": "block-driver", "name": "lull-ab-0-cbw"}, {"id": 2, "type": "block-driver", "name": "disk0"},
                          {"id": 3, "type": "block-driver", "name": "lull-ab-0-fleece"}],
                "edges": [{"parent": 1, "child": 3, "name": "target"}, {"parent": 1, "child": 2, "name": "file"}]}),
            objects: json!([{"name": "type"}, {"name": "lull-ab-stop"}, {"name": "io1"}]),
        }
    }

    #[test]
    fn everything_of_ours_is_seen_and_nothing_else() {
        let residue = residue_from(&answers(), None);
        assert_eq!(
            residue.describe(&["lull-cd".into()]),
            [
                "job lull-ab-0-job",
                "filter lull-ab-0-cbw in front of /machine/peripheral/sd0",
                "node lull-ab-0-cbw",
                "node lull-cd-1-fleece",
                "bitmap lull-ab on disk0",
                "stop marker lull-ab-stop"
            ]
        );
        assert_eq!(residue.swapped[0].original.as_deref(), Some("disk0"));
        assert!(residue.stopped_by_us());
    }

    #[test]
    fn one_restore_points_look_does_not_see_the_others() {
        let residue = residue_from(&answers(), Some("cd"));
        assert_eq!(residue.describe(&[]), ["node lull-cd-1-fleece", "bitmap lull-cd on disk0"]);
        assert!(!residue.stopped_by_us());
    }
}
