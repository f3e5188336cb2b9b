//! The program that makes a backup is killed in the middle; another one sweeps.

use std::process::{Command, Stdio};
use std::time::Duration;

use lull_hypervisor::{BackupOrder, QemuHost};
use serde_json::Value;

use crate::bed::{Bed, MIB, Style, copy};

/// Set in the process that is to be killed: the bed's folder, and how far it shall come.
const VICTIM: &str = "LULL_TEST_VICTIM";

/// The program that is killed: this very test, run by itself in a process of its own.
async fn victim(folder: &str, stage: &str) -> ! {
    let folder = std::path::Path::new(folder);
    let mut order = BackupOrder::new("rp1", "task", folder.join("repo"), folder.join("fleece"));
    order.min_free_fleecing_bytes = Some(0);
    order.speed_bytes_per_s = Some(MIB);
    let vm = QemuHost::new(folder.join("host")).open("vm").await.unwrap();
    let mut backup = vm.prepare(order).await.unwrap();
    if stage != "prepared" {
        backup.snapshot(false).await.unwrap();
    }
    std::fs::write(folder.join("ready"), "").unwrap();
    if stage == "copying" {
        copy(&mut backup).await.unwrap();
    }
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_program_is_swept_by_the_next_one() {
    if let Ok(task) = std::env::var(VICTIM) {
        let (stage, folder) = task.split_once(':').unwrap();
        victim(folder, stage).await;
    }
    for stage in ["prepared", "taken", "copying"] {
        let bed = Bed::start(&[Style::Blockdev, Style::ScsiRaw]).await;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::a_killed_program_is_swept_by_the_next_one", "--nocapture"])
            .env(VICTIM, format!("{stage}:{}", bed.dir.path().display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !bed.dir.path().join("ready").exists() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let load = bed.load();
        if stage == "copying" {
            while bed.control("query-jobs", Value::Null).await[0]["current-progress"].as_u64().unwrap_or(0) < MIB {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(bed.run_state().await, "running");
        assert!(bed.left_behind(&[]).await.len() > 6, "a killed program cannot have cleaned up");
        let swept = bed.sweep(&[]).await;
        println!("{stage}: {swept:?}");
        assert_eq!(swept.remaining, Vec::<String>::new());
        assert!(load.stop().await.0 > 0);
        bed.assert_as_before().await;
    }
}
