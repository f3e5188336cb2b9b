//! How work is shared out over the proxies: the preview of a job, and the load over time.

use super::table::{or_dash, table};
use super::text::one_line;
use super::{Look, Tone, units};
use lull_api::proxy_tier::{JobPreview, Load, LoadReport, ProxyLoad};

/// A preview: each VM with its proxy, then each proxy with its share, then the notes.
pub fn preview(preview: &JobPreview, look: &Look) -> String {
    let rows = preview.vms.iter().map(|vm| {
        let begins = match vm.turn {
            0 => "never".to_string(),
            1 => "at once".to_string(),
            turn => format!("turn {turn}"),
        };
        vec![
            vm.vm.clone(),
            vm.proxy.clone().unwrap_or_else(|| "nobody".into()),
            vm.tier.map_or("-".into(), |tier| tier.to_string()),
            or_dash(vm.channel.as_deref()),
            begins,
            vm.why.clone(),
        ]
    });
    let titles = ["vm", "proxy", "tier", "channel", "begins", "why"];
    let mut text = table(look, &titles, rows.collect(), "The job has no VMs in scope.");
    for vm in preview.vms.iter().filter(|vm| !vm.reasons.is_empty()) {
        let head = format!("{}: {}", one_line(&vm.vm), one_line(&vm.why));
        text.push_str(&format!("\n{}\n", look.paint(Tone::Bad, &head)));
        for reason in &vm.reasons {
            text.push_str(&format!("  {}\n", one_line(reason)));
        }
    }
    let rows = preview.proxies.iter().map(|share| {
        vec![
            share.proxy.clone(),
            share.state.clone(),
            share.tasks.to_string(),
            share.at_once.to_string(),
            share.slots.to_string(),
            tiers(&share.by_tier),
        ]
    });
    let titles = ["proxy", "state", "tasks", "at once", "slots", "tiers"];
    text.push('\n');
    text.push_str(&table(look, &titles, rows.collect(), "There is no guest interaction proxy."));
    for (n, note) in preview.notes.iter().enumerate() {
        let before = if n == 0 { "\n" } else { "" };
        text.push_str(&format!("{before}{} {}\n", look.paint(Tone::Faint, "note:"), one_line(note)));
    }
    text
}

/// `12×1, 3×4`: how many tasks in which tier.
fn tiers(by_tier: &[u32]) -> String {
    let some = (1..).zip(by_tier).filter(|(_, tasks)| **tasks > 0);
    or_dash(Some(&some.map(|(tier, tasks)| format!("{tasks} in tier {tier}")).collect::<Vec<_>>().join(", ")))
}

/// Most columns of a chart.
const CHART_COLUMNS: usize = 72;

/// The load of each proxy, with a chart of its busy time.
pub fn load(report: &LoadReport, look: &Look) -> String {
    let each = if report.bucket_s == 86_400 { "day" } else { "hour" };
    let most = report.proxies.iter().flat_map(|proxy| &proxy.buckets).map(|load| load.busy_us).max().unwrap_or(0);
    let rows = report.proxies.iter().map(|proxy| {
        vec![
            proxy.proxy.clone(),
            proxy.total.tasks.to_string(),
            units::duration(proxy.total.busy_us),
            tiers(&proxy.total.by_tier),
            proxy.total.failovers.to_string(),
            chart(proxy, most),
        ]
    });
    let titles = ["proxy", "tasks", "busy", "tiers", "failovers", "busy by"];
    let mut text =
        format!("{} to {}, by {each} (UTC)\n\n", units::time(&report.since, look), units::time(&report.until, look));
    text.push_str(&table(look, &titles, rows.collect(), "There is no guest interaction proxy."));
    if most > 0 {
        text.push_str(&format!("\nThe highest column is {} of work in one {each}.\n", units::duration(most)));
    }
    text
}

/// One proxy's load, a line for each bucket in which it had work.
pub fn load_of_one(report: &LoadReport, proxy: &ProxyLoad, look: &Look) -> String {
    let busy = report.buckets.iter().zip(&proxy.buckets).filter(|(_, load)| **load != Load::default());
    let rows = busy.map(|(start, load)| {
        vec![
            units::time(start, look),
            load.tasks.to_string(),
            units::duration(load.busy_us),
            format!("{:.1}", load.busy_us as f64 / (report.bucket_s.max(1) as f64 * 1e6)),
            tiers(&load.by_tier),
            load.failovers.to_string(),
        ]
    });
    let nothing = format!("{} had no tasks in this time.", one_line(&proxy.proxy));
    let titles = ["from", "tasks", "busy", "tasks at once", "tiers", "failovers"];
    format!("{}\n{}", load(report, look), table(look, &titles, rows.collect(), &nothing))
}

/// Columns from `▁` to `█`, one for each bucket or for several where there are many; a blank where nothing ran.
fn chart(proxy: &ProxyLoad, most: u64) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let in_one = proxy.buckets.len().div_ceil(CHART_COLUMNS).max(1);
    let columns = proxy.buckets.chunks(in_one).map(|loads| loads.iter().map(|load| load.busy_us).max().unwrap_or(0));
    columns
        .map(|busy| match busy {
            0 => '·',
            // `most` is the greatest of all, so this stays below 8.
            busy => LEVELS[usize::try_from((u128::from(busy) * 8 - 1) / u128::from(most.max(1))).unwrap_or(0).min(7)],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::proxy_tier::{ProxyShare, VmPreview};

    fn vm(name: &str, proxy: Option<&str>, tier: Option<u8>, turn: u32, why: &str) -> VmPreview {
        VmPreview {
            vm: name.into(),
            proxy: proxy.map(str::to_string),
            tier,
            channel: tier.map(|_| "SSH".into()),
            turn,
            why: why.into(),
            reasons: vec![],
        }
    }

    #[test]
    fn a_preview_shows_every_vm_and_what_each_proxy_gets() {
        let share = |proxy: &str, state: &str, tasks, at_once, by_tier: [u32; 4]| ProxyShare {
            proxy: proxy.into(),
            state: state.into(),
            tasks,
            at_once,
            slots: 2,
            by_tier: by_tier.to_vec(),
        };
        let mut nobody = vm("win", None, None, 0, "no server can serve it");
        nobody.reasons = vec!["site-a: cannot: a Linux proxy cannot access a Windows guest".into()];
        let sample = JobPreview {
            job: "nightly".into(),
            vms: vec![
                vm("shop", Some("site-a"), Some(1), 1, "same network, not the backup server"),
                vm("web", Some("site-a"), Some(1), 2, "same network, not the backup server"),
                nobody,
            ],
            proxies: vec![
                share("site-a", "online", 2, 1, [2, 0, 0, 0]),
                share("backup-server", "online", 0, 0, [0; 4]),
            ],
            notes: vec!["1 VMs wait for a slot at first".into()],
        };
        assert_eq!(
            preview(&sample, &Look::plain(None)),
            "\
VM    PROXY   TIER  CHANNEL  BEGINS   WHY
shop  site-a  1     SSH      at once  same network, not the backup server
web   site-a  1     SSH      turn 2   same network, not the backup server
win   nobody  -     -        never    no server can serve it

win: no server can serve it
  site-a: cannot: a Linux proxy cannot access a Windows guest

PROXY          STATE   TASKS  AT ONCE  SLOTS  TIERS
site-a         online  2      1        2      2 in tier 1
backup-server  online  0      0        2      -

note: 1 VMs wait for a slot at first
"
        );
    }

    #[test]
    fn the_load_over_time_is_a_line_for_each_proxy() {
        let load = |tasks, busy_s: u64, failovers| Load {
            tasks,
            busy_us: busy_s * 1_000_000,
            by_tier: [tasks, 0, 0, 0],
            failovers,
        };
        let proxy = |name: &str, buckets: Vec<Load>| ProxyLoad {
            proxy: name.into(),
            total: load(buckets.iter().map(|load| load.tasks).sum(), 5_400, 1),
            buckets,
        };
        let report = LoadReport {
            since: "2026-03-01T10:00:00Z".into(),
            until: "2026-03-01T12:30:00Z".into(),
            bucket_s: 3_600,
            buckets: ["10", "11", "12"].map(|hour| format!("2026-03-01T{hour}:00:00Z")).to_vec(),
            proxies: vec![
                proxy("site-a", vec![load(2, 3_600, 0), load(1, 1_800, 1), Load::default()]),
                ProxyLoad { proxy: "idle".into(), total: Load::default(), buckets: vec![Load::default(); 3] },
            ],
        };
        let text = load_of_one(&report, &report.proxies[0], &Look::plain(None));
        assert_eq!(
            text,
            "\
2026-03-01 10:00:00 to 2026-03-01 12:30:00, by hour (UTC)

PROXY   TASKS  BUSY        TIERS        FAILOVERS  BUSY BY
site-a  3      1 h 30 min  3 in tier 1  1          █▄·
idle    0      0 µs        -            0          ···

The highest column is 1 h 00 min of work in one hour.

FROM                 TASKS  BUSY         TASKS AT ONCE  TIERS        FAILOVERS
2026-03-01 10:00:00  2      1 h 00 min   1.0            2 in tier 1  0
2026-03-01 11:00:00  1      30 min 00 s  0.5            1 in tier 1  1
"
        );
        assert!(super::load(&report, &Look::plain(Some(80))).lines().count() > 4);
    }
}
