//! Guest processing settings between the REST interface, where they are flat and may be absent, and the engine. Checks
//! words; whether values fit together is the engine's question.

use super::answer::{Answer, bad_value};
use super::names::{Place, SERVER, find};
use crate::store::infrastructure::ServerRow;
use lull_api::job::GuestSettings;
use lull_engine::ids::ServerId;
use lull_engine::settings::{Fallback, GuestProcessing, Indexing, ProxyPolicy};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Applies what is given; what is absent stays.
pub fn apply(
    settings: &mut GuestProcessing,
    copy_limit_bytes_per_s: &mut u64,
    given: &GuestSettings,
    servers: &[ServerRow],
) -> Answer<()> {
    let scripts = &mut settings.scripts.linux;
    set(&mut settings.application_aware, word("application_aware", &given.application_aware)?);
    set(&mut scripts.mode, word("scripts", &given.scripts)?);
    for (script, text) in [(&mut scripts.pre, &given.pre_freeze_script), (&mut scripts.post, &given.post_thaw_script)] {
        if let Some(text) = text {
            *script = Some(text.clone()).filter(|text| !text.is_empty());
        }
    }
    let ms = |s: u64| s.saturating_mul(1_000);
    set(&mut scripts.timeout_ms, given.script_timeout_s.map(ms));
    set(&mut settings.checkpoint.enabled, given.checkpoint);
    set(&mut settings.checkpoint.timeout_ms, given.checkpoint_timeout_s.map(ms));
    set(&mut settings.lease_ms, given.lease_ms);
    set(&mut settings.freeze_budget_ms, given.freeze_budget_ms);
    set(&mut settings.excluded_mount_points, given.exclude_mount_points.clone());
    set(copy_limit_bytes_per_s, given.copy_limit_bytes_per_s);
    settings.indexing = indexing(settings.indexing.take(), given)?;
    settings.proxies = policy(&settings.proxies, given, servers)?;
    Ok(())
}

/// The settings with every value that holds.
pub fn shown(settings: &GuestProcessing, copy_limit_bytes_per_s: u64, servers: &[ServerRow]) -> GuestSettings {
    let scripts = &settings.scripts.linux;
    let (proxy, preferred, fallback) = match &settings.proxies {
        ProxyPolicy::Automatic => ("automatic", Vec::new(), None),
        ProxyPolicy::Prefer { servers: ids, fallback } => {
            let name = |id: &ServerId| {
                servers.iter().find(|s| s.id == id.0).map_or_else(|| id.to_string(), |s| s.name.clone())
            };
            ("prefer", ids.iter().map(name).collect(), Some(spelled(fallback)))
        }
    };
    let indexing = settings.indexing_in_effect();
    let index_paths = match &indexing {
        Indexing::Only { paths } => Some(paths.clone()),
        Indexing::EverythingExceptNoise | Indexing::Everything | Indexing::Disabled => None,
    };
    GuestSettings {
        application_aware: Some(spelled(&settings.application_aware)),
        pre_freeze_script: scripts.pre.clone(),
        post_thaw_script: scripts.post.clone(),
        scripts: Some(spelled(&scripts.mode)),
        script_timeout_s: Some(scripts.timeout_ms / 1_000),
        checkpoint: Some(settings.checkpoint.enabled),
        checkpoint_timeout_s: Some(settings.checkpoint.timeout_ms / 1_000),
        lease_ms: Some(settings.lease_ms),
        freeze_budget_ms: Some(settings.freeze_budget_ms),
        exclude_mount_points: Some(settings.excluded_mount_points.clone()),
        indexing: Some(indexing_word(&indexing).into()),
        index_paths,
        guest_interaction_proxy: Some(proxy.into()),
        preferred_servers: Some(preferred),
        fallback,
        copy_limit_bytes_per_s: Some(copy_limit_bytes_per_s),
    }
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// *Only* keeps its paths until other ones are given.
fn indexing(known: Option<Indexing>, given: &GuestSettings) -> Answer<Option<Indexing>> {
    let known_paths = match &known {
        Some(Indexing::Only { paths }) => Some(paths.clone()),
        _ => None,
    };
    let only = match given.indexing.as_deref() {
        None => known_paths.is_some(),
        Some(ONLY) => true,
        Some(_) => false,
    };
    if only {
        let paths = given.index_paths.clone().or(known_paths).unwrap_or_default();
        return Ok(Some(Indexing::Only { paths }));
    }
    if given.index_paths.as_ref().is_some_and(|paths| !paths.is_empty()) {
        return Err(bad_value("guest.index_paths", "these count only with indexing = only"));
    }
    match given.indexing.as_deref() {
        None => Ok(known),
        Some("everything-except-noise") => Ok(Some(Indexing::EverythingExceptNoise)),
        Some("everything") => Ok(Some(Indexing::Everything)),
        Some("disabled") => Ok(Some(Indexing::Disabled)),
        Some(_) => Err(bad_value("guest.indexing", "must be everything-except-noise, everything, only or disabled")),
    }
}

/// The setting's word for the one mode that takes paths.
const ONLY: &str = "only";

fn indexing_word(indexing: &Indexing) -> &'static str {
    match indexing {
        Indexing::EverythingExceptNoise => "everything-except-noise",
        Indexing::Everything => "everything",
        Indexing::Only { .. } => ONLY,
        Indexing::Disabled => "disabled",
    }
}

fn policy(known: &ProxyPolicy, given: &GuestSettings, servers: &[ServerRow]) -> Answer<ProxyPolicy> {
    let (mut preferred, mut fallback) = match known {
        ProxyPolicy::Automatic => (Vec::new(), Fallback::default()),
        ProxyPolicy::Prefer { servers, fallback } => (servers.clone(), *fallback),
    };
    set(&mut fallback, word("fallback", &given.fallback)?);
    if let Some(names) = &given.preferred_servers {
        preferred = Vec::new();
        for name in names {
            let found = find(SERVER, Place::Body, name, servers.to_vec(), |s| (s.id, s.name.clone()))?;
            let id = ServerId(found.id);
            if !preferred.contains(&id) {
                preferred.push(id);
            }
        }
    }
    let prefers = match given.guest_interaction_proxy.as_deref() {
        None => !matches!(known, ProxyPolicy::Automatic),
        Some("automatic") => false,
        Some("prefer") => true,
        Some(_) => return Err(bad_value("guest.guest_interaction_proxy", "must be automatic or prefer")),
    };
    if prefers {
        return Ok(ProxyPolicy::Prefer { servers: preferred, fallback });
    }
    if given.preferred_servers.as_ref().is_some_and(|names| !names.is_empty()) || given.fallback.is_some() {
        let what = "these count only with guest_interaction_proxy = prefer";
        return Err(bad_value("guest.preferred_servers, guest.fallback", what));
    }
    Ok(ProxyPolicy::Automatic)
}

/// One of the engine's words; its own error says which there are.
fn word<T: DeserializeOwned>(member: &str, given: &Option<String>) -> Answer<Option<T>> {
    let Some(text) = given else { return Ok(None) };
    match serde_json::from_value(serde_json::Value::from(text.as_str())) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(bad_value(&format!("guest.{member}"), super::shortened(&error.to_string()))),
    }
}

fn spelled(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn servers() -> Vec<ServerRow> {
        let server = |n, name: &str| ServerRow {
            id: Uuid::from_u128(n),
            name: name.into(),
            is_backup_server: n == 1,
            role_enabled: true,
        };
        vec![server(1, "backup-server"), server(2, "proxy-a")]
    }

    fn applied(settings: &mut GuestProcessing, json: serde_json::Value) -> Result<(), String> {
        let given: GuestSettings = serde_json::from_value(json).unwrap();
        apply(settings, &mut 0, &given, &servers()).map_err(|fault| fault.0.what)
    }

    #[test]
    fn what_is_absent_stays_and_what_is_shown_applies_again() {
        let mut settings = GuestProcessing::default();
        let change = serde_json::json!({"lease_ms": 7000, "guest_interaction_proxy": "prefer",
            "preferred_servers": ["proxy-a"], "pre_freeze_script": "#!/bin/sh\n", "scripts": "ignore-failures",
            "indexing": "only", "index_paths": ["/srv"]});
        applied(&mut settings, change).unwrap();
        applied(&mut settings, serde_json::json!({"checkpoint": false})).unwrap();
        assert_eq!((settings.lease_ms, settings.checkpoint.enabled), (7000, false));

        assert_eq!(settings.indexing, Some(Indexing::Only { paths: vec!["/srv".into()] }));
        let shown = shown(&settings, 5, &servers());
        let (mut again, mut limit) = (GuestProcessing::default(), 0);
        apply(&mut again, &mut limit, &shown, &servers()).unwrap();
        assert_eq!((again, limit), (settings.clone(), 5));

        // Named twice is meant once; a fallback alone leaves the servers as they are.
        applied(&mut settings, serde_json::json!({"preferred_servers": ["proxy-a", "proxy-a"]})).unwrap();
        applied(&mut settings, serde_json::json!({"fallback": "none"})).unwrap();
        let (servers, fallback) = (vec![ServerId(Uuid::from_u128(2))], Fallback::None);
        assert_eq!(settings.proxies, ProxyPolicy::Prefer { servers, fallback });
        applied(&mut settings, serde_json::json!({"guest_interaction_proxy": "automatic"})).unwrap();
        assert_eq!(settings.proxies, ProxyPolicy::Automatic);
        applied(&mut settings, serde_json::json!({"pre_freeze_script": ""})).unwrap();
        assert_eq!(settings.scripts.linux.pre, None);
        applied(&mut settings, serde_json::json!({"index_paths": ["/home"]})).unwrap();
        assert_eq!(settings.indexing, Some(Indexing::Only { paths: vec!["/home".into()] }));
        applied(&mut settings, serde_json::json!({"indexing": "disabled"})).unwrap();
        assert_eq!(settings.indexing, Some(Indexing::Disabled));
    }

    #[test]
    fn what_was_never_chosen_is_shown_as_what_holds() {
        let shown = shown(&GuestProcessing::default(), 0, &servers());
        assert_eq!((shown.indexing.as_deref(), shown.index_paths), (Some("everything-except-noise"), None));
    }

    #[test]
    fn wrong_words_say_which_there_are() {
        let mut settings = GuestProcessing::default();
        let check = |settings: &mut GuestProcessing, json, says: &str| {
            let what = applied(settings, json).unwrap_err();
            assert!(what.contains(says), "{what}");
        };
        check(&mut settings, serde_json::json!({"application_aware": "yes"}), "require-success");
        check(&mut settings, serde_json::json!({"guest_interaction_proxy": "best"}), "automatic or prefer");
        check(&mut settings, serde_json::json!({"fallback": "none"}), "only with");
        check(&mut settings, serde_json::json!({"indexing": "all"}), "everything-except-noise, everything, only");
        check(&mut settings, serde_json::json!({"index_paths": ["/srv"]}), "only with indexing = only");
        let both = serde_json::json!({"indexing": "everything", "index_paths": ["/srv"]});
        check(&mut settings, both, "only with indexing = only");
        let prefer = serde_json::json!({"guest_interaction_proxy": "prefer", "preferred_servers": ["proxy-b"]});
        check(&mut settings, prefer, "no managed server \"proxy-b\"");
        assert_eq!(settings, GuestProcessing::default());
    }
}
