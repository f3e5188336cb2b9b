//! `lull catalog`: the guests' files over all restore points.
//!
//! Knows how patterns and times are written on a command line; what is found, the server knows.

use crate::calls;
use crate::exit::Exit;
use crate::render::catalog as look;
use crate::render::units;
use crate::screen::Screen;
use crate::trouble::{Result, Trouble};
use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt;
use jiff::{Span, Timestamp};
use lull_api::Client;
use lull_api::catalog::{CatalogEnd, CatalogLine};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::pin::pin;

/// What can be asked of the catalog.
#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Find files by name over all restore points of all VMs.
    ///
    /// Says of each version of a file in which restore points it existed. The version that was changed last comes first.
    #[command(after_help = "Examples:\n  \
        lull catalog search orders.csv\n  \
        lull catalog search '*.pem' --glob --vm shop --larger 1K\n  \
        lull catalog search '/etc/**/*.conf' --glob --path --restore-point latest --vm shop\n  \
        lull catalog search '^core\\.[0-9]+$' --regex --changed-after 7d")]
    Search(Box<SearchArgs>),
    /// Look into a folder of a VM, in one restore point or over all.
    ///
    /// Of a path that is no folder, all its versions are shown.
    #[command(after_help = "Examples:\n  \
        lull catalog browse shop/etc\n  \
        lull catalog browse shop:latest/var/lib\n  \
        lull catalog browse shop/etc/passwd        every version, and where it is")]
    Browse {
        /// VM, optionally a restore point (its id, the beginning or end of it, or `latest`), and the path.
        #[arg(value_name = "VM[:RESTORE-POINT]/PATH")]
        place: OsString,
    },
    /// Write out everything that the catalog knows of a VM.
    #[command(after_help = "Example:\n  lull catalog export shop --restore-point latest -o shop.csv")]
    Export {
        /// Name of the VM.
        vm: String,
        /// Only what existed in this restore point: its id, the beginning or end of it, or `latest`.
        #[arg(long, value_name = "ID")]
        restore_point: Option<String>,
        /// How it is written.
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// The file to write; stdout unless given.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show which restore points are in the catalog, and which are not yet.
    Status {
        /// Only of this VM.
        #[arg(long, value_name = "VM")]
        vm: Option<String>,
    },
}

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line of names, then a line a version.
    Csv,
    /// One JSON object a line.
    JsonLines,
}

/// What is searched for.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// What the name has to contain; everything fits without it.
    pattern: Option<OsString>,
    /// The pattern is a glob that the whole name fits: `*`, `**` (over folders), `?`, `[a-z]`.
    #[arg(long, conflicts_with = "regex")]
    glob: bool,
    /// The pattern is a regular expression.
    #[arg(long)]
    regex: bool,
    /// Compare with the whole path instead of the name.
    #[arg(long)]
    path: bool,
    /// `a` is `A`.
    #[arg(long, short)]
    ignore_case: bool,
    /// Only in these VMs.
    #[arg(long, value_name = "VM")]
    vm: Vec<String>,
    /// Only what existed in this restore point: its id, the beginning or end of it, or `latest` (with one --vm).
    #[arg(long, value_name = "ID")]
    restore_point: Option<String>,
    /// Only files of at least this size.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    larger: Option<u64>,
    /// Only files of at most this size.
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    smaller: Option<u64>,
    /// Only what was changed at this time or later: `2026-11-01`, `2026-11-01T12:00:00Z`, or `7d`, `12h` ago.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    changed_after: Option<Timestamp>,
    /// Only what was changed at this time or before.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    changed_before: Option<Timestamp>,
    /// Only of these kinds: file, folder, symlink, fifo, socket, char-device, block-device.
    #[arg(long = "type", value_name = "KIND")]
    kind: Vec<String>,
    /// At most so many versions; 0 for all of them, ordered by path.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Order by VM and path instead of by time.
    #[arg(long)]
    by_path: bool,
    /// Go on where an earlier answer ended.
    #[arg(long, value_name = "TOKEN")]
    page: Option<String>,
}

/// Runs it.
pub async fn run(client: Client, screen: &Screen, command: CatalogCommand) -> Result<Exit> {
    match command {
        CatalogCommand::Search(args) => {
            let query = search_query(*args)?;
            let end = lines(&client, screen, &format!("/catalog/search?{query}")).await?;
            if end.told == 0 {
                screen.remark("Nothing was found.");
            }
            Ok(ended(screen, &end))
        }
        CatalogCommand::Browse { place } => {
            let query = browse_query(place.as_bytes())?;
            let end = lines(&client, screen, &format!("/catalog/browse?{query}")).await?;
            if end.told == 0 {
                screen.remark("There is nothing of this path in the catalog.");
            }
            Ok(ended(screen, &end))
        }
        CatalogCommand::Export { vm, restore_point, format, output } => {
            let format = if format == Format::Csv { "csv" } else { "json-lines" };
            let mut query = vec![("vm", vm), ("format", format.to_string())];
            query.extend(restore_point.map(|point| ("restore_point", point)));
            export(&client, &format!("/catalog/export?{}", joined(query)), output).await
        }
        CatalogCommand::Status { vm } => {
            let tables = calls::catalog(&client, vm.as_deref()).await?;
            screen.show(&tables, |tables, how| look::tables(tables, how))?;
            Ok(Exit::Ok)
        }
    }
}

/// Shows lines as they come; answers how they ended.
async fn lines(client: &Client, screen: &Screen, path: &str) -> Result<CatalogEnd> {
    let mut lines = pin!(client.lines::<CatalogLine>(path).await?);
    let how = screen.look();
    while let Some(line) = lines.next().await {
        let line = line?;
        if screen.json {
            screen.json_line(&line)?;
        }
        match line {
            CatalogLine::Hit(hit) if !screen.json => screen.text(&look::hit(&hit, &how))?,
            CatalogLine::Entry(entry) if !screen.json => screen.text(&look::entry(&entry, &how))?,
            CatalogLine::Hit(_) | CatalogLine::Entry(_) => {}
            CatalogLine::Failed(problem) => return Err(lull_api::client::ClientError::Problem(problem).into()),
            CatalogLine::End(end) => return Ok(end),
        }
    }
    Err(lull_api::client::ClientError::Ended { server: client.server().to_string() }.into())
}

/// Says what an answer lacks.
fn ended(screen: &Screen, end: &CatalogEnd) -> Exit {
    for missing in &end.missing {
        screen.remark(&format!("not searched: {missing}"));
    }
    for unknown in &end.unknown {
        screen.remark(&format!("not known: {unknown}"));
    }
    if !end.pending.is_empty() {
        let points = if end.pending.len() == 1 { "restore point is" } else { "restore points are" };
        screen.remark(&format!("{} {points} not in the catalog yet: see `lull catalog status`", end.pending.len()));
    }
    if let Some(page) = &end.next_page {
        screen.remark(&format!("There is more: repeat the command with --page {page}"));
    }
    if end.missing.is_empty() { Exit::Ok } else { Exit::Warning }
}

async fn export(client: &Client, path: &str, output: Option<PathBuf>) -> Result<Exit> {
    let mut chunks = pin!(client.bytes(path).await?);
    let cannot = |path: &std::path::Path, error: std::io::Error| {
        Trouble::local(Exit::Failed, "output-failed", format!("{} could not be written", path.display()))
            .why(error.to_string())
    };
    match output {
        None => {
            while let Some(chunk) = chunks.next().await {
                std::io::stdout().write_all(&chunk?)?;
            }
            std::io::stdout().flush()?;
        }
        Some(path) => {
            // Under its name only once it is whole.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(std::path::Path::new("."));
            let mut partial = tempfile::NamedTempFile::new_in(folder).map_err(|error| cannot(&path, error))?;
            while let Some(chunk) = chunks.next().await {
                partial.write_all(&chunk?).map_err(|error| cannot(&path, error))?;
            }
            partial.persist(&path).map_err(|error| cannot(&path, error.error))?;
        }
    }
    Ok(Exit::Ok)
}

fn search_query(args: SearchArgs) -> Result<String> {
    let mut query = Vec::new();
    if let Some(pattern) = args.pattern {
        query.push(text_or_hex("pattern", pattern.into_vec()));
    }
    let how = if args.glob { "glob" } else { "regex" };
    let flag = |set: bool, key: &'static str, value: &str| set.then(|| (key, value.to_string()));
    query.extend(flag(args.glob || args.regex, "how", how));
    query.extend(flag(args.path, "what", "path"));
    query.extend(flag(args.ignore_case, "ignore_case", "true"));
    query.extend(flag(args.by_path || args.limit == 0, "order", "path"));
    query.extend(flag(!args.vm.is_empty(), "vm", &args.vm.join(",")));
    query.extend(flag(!args.kind.is_empty(), "kind", &args.kind.join(",")));
    query.extend(args.restore_point.map(|point| ("restore_point", point)));
    query.extend(args.larger.map(|size| ("size_min", size.to_string())));
    query.extend(args.smaller.map(|size| ("size_max", size.to_string())));
    query.extend(args.changed_after.map(|at| ("modified_after", at.to_string())));
    query.extend(args.changed_before.map(|at| ("modified_before", at.to_string())));
    query.push(("limit", args.limit.to_string()));
    query.extend(args.page.map(|page| ("page", page)));
    Ok(joined(query))
}

/// `VM[:RESTORE-POINT]/PATH`
fn browse_query(place: &[u8]) -> Result<String> {
    let wrong = || {
        Trouble::usage("the place to browse is written VM[:RESTORE-POINT]/PATH")
            .remedy("for instance: lull catalog browse shop/etc")
    };
    let slash = place.iter().position(|byte| *byte == b'/').unwrap_or(place.len());
    let (head, path) = place.split_at(slash);
    let head = std::str::from_utf8(head).map_err(|_| wrong())?;
    let (vm, point) = match head.split_once(':') {
        Some((vm, point)) => (vm, Some(point)),
        None => (head, None),
    };
    if vm.is_empty() || point == Some("") {
        return Err(wrong());
    }
    let mut query = vec![("vm", vm.to_string())];
    query.extend(point.map(|point| ("restore_point", point.to_string())));
    if !path.is_empty() {
        query.push(text_or_hex("path", path.to_vec()));
    }
    Ok(joined(query))
}

/// What is no UTF-8 travels as hexadecimal digits.
fn text_or_hex(key: &'static str, bytes: Vec<u8>) -> (&'static str, String) {
    match String::from_utf8(bytes) {
        Ok(text) => (key, text),
        Err(error) => {
            let digits = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            (if key == "path" { "path_hex" } else { "pattern_hex" }, digits)
        }
    }
}

fn joined(query: Vec<(&'static str, String)>) -> String {
    let pairs: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", calls::segment(value))).collect();
    pairs.join("&")
}

/// `2026-11-01`, `2026-11-01T12:00:00Z`, `7d` ago.
fn parse_time(text: &str) -> std::result::Result<Timestamp, String> {
    let wrong =
        || format!("`{text}` is no time: write 2026-11-01, 2026-11-01T12:00:00Z, or 7d, 12h, 30m for so long ago");
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let zone = jiff::tz::TimeZone::system();
        return day.to_zoned(zone).map(|at| at.timestamp()).map_err(|error| error.to_string());
    }
    let days = text.strip_suffix('d').and_then(|days| days.parse::<i64>().ok());
    let hours = match days {
        Some(days) => Span::new().try_hours(days.saturating_mul(24)).map_err(|_| wrong())?,
        None => {
            let ms = units::parse_duration_ms(text).map_err(|_| wrong())?;
            Span::new().try_milliseconds(i64::try_from(ms).map_err(|_| wrong())?).map_err(|_| wrong())?
        }
    };
    Timestamp::now().checked_sub(hours).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_vm_perhaps_a_restore_point_and_a_path() {
        for (place, query) in [
            (&b"shop"[..], "vm=shop"),
            (b"shop/", "vm=shop&path=%2F"),
            (b"shop/etc/a b", "vm=shop&path=%2Fetc%2Fa%20b"),
            (b"shop:latest/etc:x", "vm=shop&restore_point=latest&path=%2Fetc%3Ax"),
            (b"shop/\xff", "vm=shop&path_hex=2fff"),
        ] {
            assert_eq!(browse_query(place).unwrap(), query);
        }
        for wrong in [&b""[..], b"/etc", b":latest/etc", b"shop:/etc", b"\xff/etc"] {
            assert!(browse_query(wrong).is_err());
        }
    }

    #[test]
    fn times_are_days_moments_or_ages() {
        assert_eq!(parse_time("2026-11-01T12:00:00Z").unwrap().to_string(), "2026-11-01T12:00:00Z");
        assert!(parse_time("2026-11-01").is_ok());
        let ago = |text| Timestamp::now().as_second() - parse_time(text).unwrap().as_second();
        assert!((7 * 86_400..7 * 86_400 + 60).contains(&ago("7d")));
        assert!((1_800..1_860).contains(&ago("30m")));
        for wrong in ["", "d", "yesterday", "7", "-3d x", "99999999999999d"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
