//! What Lull puts on a machine that becomes a proxy: where it lies, and the systemd unit that runs it. Pure.
//!
//! On an ordinary machine the unit has no account of its own: systemd makes one that exists only while the proxy runs (`DynamicUser`),
//! without any capability. Where a hypervisor's folders are, their sockets and files belong to others: there the proxy is root, with the
//! capabilities that reading and writing them takes, and with these folders alone open.

/// Everything of the program's, so that it can be removed as a whole. A folder named `bin`: so SELinux's policies label what is in it as a
/// program that systemd may start.
pub const PROGRAM_FOLDER: &str = "/usr/local/lib/lull";
/// The program.
pub const PROGRAM: &str = "/usr/local/lib/lull/bin/lull";
/// State folder: the identity.
pub const STATE: &str = "/var/lib/lull-proxy";
/// Where systemd keeps the state folder of a `DynamicUser`; [`STATE`] is a link to it then.
pub const STATE_PRIVATE: &str = "/var/lib/private/lull-proxy";
/// The unit's name.
pub const UNIT: &str = "lull-proxy.service";
/// The unit's file.
pub const UNIT_FILE: &str = "/etc/systemd/system/lull-proxy.service";

/// What the unit is written from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitSettings {
    /// Task slots; 0: as many as there are processors.
    pub slots: u32,
    /// Folders of a hypervisor host on this machine: sockets, fleecing, repositories. Empty elsewhere.
    pub folders: Vec<String>,
}

/// The command that runs the proxy.
pub fn command(slots: u32) -> String {
    let slots = if slots == 0 { String::new() } else { format!(" --slots {slots}") };
    format!("{PROGRAM} --state-dir {STATE} proxy run{slots}")
}

/// Who the proxy is, in words.
pub fn account(settings: &UnitSettings) -> &'static str {
    match settings.folders.is_empty() {
        true => "an account that systemd makes while it runs (DynamicUser), without capabilities",
        false => {
            "root with the capabilities CAP_DAC_OVERRIDE, CAP_FOWNER and CAP_CHOWN, for the hypervisor's sockets and files"
        }
    }
}

/// The unit's file.
pub fn unit_file(settings: &UnitSettings) -> String {
    let command = command(settings.slots);
    let who = match settings.folders.is_empty() {
        true => "DynamicUser=yes\nPrivateUsers=yes\nCapabilityBoundingSet=\n".to_string(),
        false => {
            let mut text = "User=root\nCapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER CAP_CHOWN\n".to_string();
            for folder in &settings.folders {
                let folder = escaped(folder);
                // Below these the unit sees folders of its own; a bind puts the real one there.
                let hidden = ["/tmp/", "/var/tmp/", "/home/", "/root/", "/run/user/"];
                let hidden = hidden.iter().any(|place| folder.trim_start_matches('"').starts_with(place));
                text.push_str(&format!("{}=-{folder}\n", if hidden { "BindPaths" } else { "ReadWritePaths" }));
            }
            text
        }
    };
    format!(
        "# Written by Lull; `lull managed-server repair` writes it anew. Settings of your own: systemctl edit {UNIT}\n\
         [Unit]\n\
         Description=Lull guest interaction proxy\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={command}\n\
         Restart=always\n\
         RestartSec=5\n\
         # 5: the backup server does not want this proxy any more\n\
         RestartPreventExitStatus=5\n\
         KillMode=mixed\n\
         TimeoutStopSec=120\n\
         StateDirectory=lull-proxy\n\
         StateDirectoryMode=0700\n\
         UMask=0077\n\
         {who}\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ProtectHome=yes\n\
         PrivateTmp=yes\n\
         PrivateDevices=yes\n\
         ProtectProc=invisible\n\
         ProcSubset=pid\n\
         ProtectClock=yes\n\
         ProtectHostname=yes\n\
         ProtectControlGroups=yes\n\
         ProtectKernelLogs=yes\n\
         ProtectKernelModules=yes\n\
         ProtectKernelTunables=yes\n\
         LockPersonality=yes\n\
         MemoryDenyWriteExecute=yes\n\
         RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK\n\
         RestrictNamespaces=yes\n\
         RestrictRealtime=yes\n\
         RestrictSUIDSGID=yes\n\
         RemoveIPC=yes\n\
         SystemCallArchitectures=native\n\
         SystemCallFilter=@system-service\n\
         SystemCallFilter=~@privileged @resources{needed}\n\
         SystemCallErrorNumber=EPERM\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        needed = if settings.folders.is_empty() { "" } else { "\nSystemCallFilter=@chown" },
    )
}

/// A path in a unit's file: quoted where it has blanks, `%` doubled.
fn escaped(path: &str) -> String {
    let path = path.replace('%', "%%");
    if path.contains(' ') { format!("\"{path}\"") } else { path }
}

/// Whether a folder can be named in a unit's file.
pub fn can_be_named(folder: &str) -> bool {
    folder.starts_with('/') && !folder.chars().any(|c| c.is_control() || matches!(c, '"' | '\\' | ':' | '\''))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_proxy_is_nobody_and_may_write_to_its_state_folder_alone() {
        let unit = unit_file(&UnitSettings { slots: 4, folders: vec![] });
        assert!(unit.contains(
            "\nExecStart=/usr/local/lib/lull/bin/lull --state-dir /var/lib/lull-proxy proxy run --slots 4\n"
        ));
        for line in ["DynamicUser=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "RestartPreventExitStatus=5"]
        {
            assert!(unit.lines().any(|l| l == line), "{line}: {unit}");
        }
        assert!(
            !unit.contains("ReadWritePaths") && !unit.contains("BindPaths") && !unit.contains("User=root"),
            "{unit}"
        );
    }

    #[test]
    fn a_hypervisor_host_s_proxy_reaches_the_hypervisor_s_folders_and_no_others() {
        let folders = vec!["/run/vms".into(), "/tmp/vm sockets".into(), "/srv/50%".into()];
        let unit = unit_file(&UnitSettings { slots: 0, folders });
        assert!(
            unit.contains("\nReadWritePaths=-/run/vms\nBindPaths=-\"/tmp/vm sockets\"\nReadWritePaths=-/srv/50%%\n"),
            "{unit}"
        );
        assert!(unit.contains("User=root") && !unit.contains("DynamicUser"), "{unit}");
        assert!(unit.contains("proxy run\n"), "{unit}");
    }

    #[test]
    fn a_folder_that_would_change_the_unit_is_not_named_there() {
        assert!(can_be_named("/run/vms") && can_be_named("/srv/my backups"));
        for wrong in ["run/vms", "/a\nExecStart=/bin/sh", "/a\"b", "/a:/etc", "/a\\b", ""] {
            assert!(!can_be_named(wrong), "{wrong:?}");
        }
    }
}
