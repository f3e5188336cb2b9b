//! What a figure was measured on: the state of this machine, in one line.

use std::fs;

/// Date, cores and load, as far as they can be read.
pub fn state() -> String {
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_string(), |cores| cores.to_string());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().filter(|word| !word.is_empty()).unwrap_or("?");
    format!("{:.0}, {cores} cores, load {load}", jiff::Timestamp::now())
}
