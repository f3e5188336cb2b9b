//! The contract of a guest channel: what every implementation must do, as one suite.

use lull_proxy::channel::{ElevatedStream, Exit, GuestChannel, Limits, Script};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Holds `channel` to all of it.
pub async fn holds(channel: &dyn GuestChannel) {
    output_and_exit_code_come_back(channel).await;
    every_byte_of_stdin_and_stdout_is_kept(channel).await;
    limits_end_a_script(channel).await;
    a_stream_carries_both_ways_from_the_first_byte(channel).await;
    dropping_a_stream_ends_the_script(channel).await;
    several_scripts_run_over_one_connection(channel).await;
}

async fn output_and_exit_code_come_back(channel: &dyn GuestChannel) {
    let script = Script::new("test", "echo out; echo words >&2; exit 7");
    let output = channel.exec_elevated(&script, b"", Limits::default()).await.unwrap();
    assert_eq!((output.exit, output.stdout.as_slice()), (Exit::Code(7), &b"out\n"[..]));
    assert!(output.stderr.ends_with("words"), "{}", output.stderr);
}

async fn every_byte_of_stdin_and_stdout_is_kept(channel: &dyn GuestChannel) {
    let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    let output = channel.exec_elevated(&Script::new("test", "cat"), &sent, Limits::default()).await.unwrap();
    assert!(output.stdout == sent, "{} bytes came back of {}", output.stdout.len(), sent.len());
}

async fn limits_end_a_script(channel: &dyn GuestChannel) {
    let limits = Limits { timeout: Duration::from_secs(3), ..Limits::default() };
    let error = channel.exec_elevated(&Script::new("sleep", "sleep 30"), b"", limits).await.unwrap_err();
    assert!(error.what.contains("within 3 s"), "{error}");
    let limits = Limits { stdout_bytes_max: 10, ..Limits::default() };
    let error = channel.exec_elevated(&Script::new("talk", "echo 12345678901"), b"", limits).await.unwrap_err();
    assert!(error.what.contains("more than 10 bytes"), "{error}");
}

async fn a_stream_carries_both_ways_from_the_first_byte(channel: &dyn GuestChannel) {
    let script = Script::new("echo", "echo ready; echo note >&2; exec cat");
    let ElevatedStream { mut reader, mut writer, stderr } = channel.open_elevated(&script).await.unwrap();
    let mut ready = [0; 6];
    reader.read_exact(&mut ready).await.unwrap();
    assert_eq!(&ready, b"ready\n");
    for size in [1usize, 100, 100_000] {
        let sent = vec![size as u8; size];
        let mut got = vec![0; size];
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.flush().await.unwrap();
        };
        let read = async { reader.read_exact(&mut got).await.map(drop).unwrap() };
        tokio::join!(write, read);
        assert!(sent == got);
    }
    assert!(stderr.text().ends_with("note"), "{}", stderr.text());
}

async fn dropping_a_stream_ends_the_script(channel: &dyn GuestChannel) {
    let script = Script::new("wait", "echo $$; cat >/dev/null; kill $$");
    let mut stream = channel.open_elevated(&script).await.unwrap();
    let mut line = [0; 32];
    let n = stream.reader.read(&mut line).await.unwrap();
    let pid: u32 = std::str::from_utf8(&line[..n]).unwrap().trim().parse().unwrap();
    drop(stream);
    let gone = Script::new(
        "test",
        &format!(
            "for i in 1 2 3 4 5 6 7 8 9 10; do if [ -d /proc/{pid} ]; then sleep 0.3; else exit 0; fi; done; exit 1"
        ),
    );
    let output = channel.exec_elevated(&gone, b"", Limits::default()).await.unwrap();
    assert_eq!(output.exit, Exit::Code(0), "the script outlives its stream");
}

async fn several_scripts_run_over_one_connection(channel: &dyn GuestChannel) {
    let script = Script::new("test", "cat");
    let (a, b) = tokio::join!(
        channel.exec_elevated(&script, b"first", Limits::default()),
        channel.exec_elevated(&script, b"second", Limits::default()),
    );
    assert_eq!((a.unwrap().stdout, b.unwrap().stdout), (b"first".to_vec(), b"second".to_vec()));
}
