//! What monitoring asks a proxy for, as OpenMetrics text. Counts what the proxy tells the backup server; knows no HTTP.

use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper ends of the freeze window's buckets, in seconds: the same as the backup server's.
const WINDOW_BUCKETS_S: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];

type Label = [(&'static str, String); 1];

/// Counters since this proxy started.
pub struct ProxyMetrics {
    finished: Family<Label, Counter>,
    freeze_window: Histogram,
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        ProxyMetrics { finished: Family::default(), freeze_window: Histogram::new(WINDOW_BUCKETS_S) }
    }
}

impl ProxyMetrics {
    /// The proxy tells this.
    pub fn observe(&self, told: &v1::TaskEvent) {
        match &told.event {
            Some(Event::Thawed(v1::Thawed { window_us, .. })) if *window_us > 0 => {
                self.freeze_window.observe(*window_us as f64 / 1e6);
            }
            Some(Event::Finished(finished)) => {
                self.finished.get_or_create(&[("outcome", finished.outcome.clone())]).inc();
            }
            _ => {}
        }
    }

    /// Everything, as text.
    pub fn text(&self, running_tasks: u32, slots: u32) -> String {
        let mut registry = Registry::with_prefix("lull_proxy");
        let gauge = |value: u32| {
            let gauge: Gauge = Gauge::default();
            gauge.set(value.into());
            gauge
        };
        let build = Family::<Label, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_string())]).set(1);
        registry.register("build_info", "Version of the proxy; always 1", build);
        registry.register("running_tasks", "Tasks that it works on", gauge(running_tasks));
        registry.register("task_slots", "Tasks that it may work on at once", gauge(slots));
        registry.register("tasks_finished", "Tasks that ended, by outcome", self.finished.clone());
        registry.register_with_unit(
            "freeze_window",
            "From freeze sent to thaw answered",
            Unit::Seconds,
            self.freeze_window.clone(),
        );
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_tells_its_windows_its_outcomes_and_its_load() {
        let metrics = ProxyMetrics::default();
        let told = |event| metrics.observe(&v1::TaskEvent { event: Some(event), ..Default::default() });
        told(Event::Thawed(v1::Thawed { freeze_id: 1, no_gap: true, window_us: 3_000 }));
        told(Event::Finished(v1::Finished { outcome: "success".into(), ..Default::default() }));
        let text = metrics.text(2, 8);
        for line in [
            "lull_proxy_running_tasks 2",
            "lull_proxy_task_slots 8",
            "lull_proxy_tasks_finished_total{outcome=\"success\"} 1",
            "lull_proxy_freeze_window_seconds_bucket{le=\"0.0025\"} 0",
            "lull_proxy_freeze_window_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "no {line} in:\n{text}");
        }
    }
}
