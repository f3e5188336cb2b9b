//! A login that goes with one request: checked, and made into what the proxy takes. Pure; nothing of it is kept.

use lull_api::infrastructure::Elevation;
use lull_api::managed::Login;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::elevation::Method;

/// Longest password or passphrase, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Longest private key, in bytes.
const KEY_BYTES_MAX: usize = 64 << 10;

/// As the proxy takes it, for `host`. An error names the member and what it must be.
pub fn credential(login: Login, host: &str) -> Result<v1::Credential, (&'static str, String)> {
    let Login { user, password, private_key, passphrase, elevation, elevation_password } = login;
    if user.is_empty() || user.len() > 256 || user.chars().any(char::is_control) {
        return Err(("login.user", "must have 1 to 256 bytes and no control characters".into()));
    }
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let bounded = |member: &'static str, text: Option<String>, bytes_max: usize| match given(text) {
        Some(text) if text.len() > bytes_max || text.contains('\0') => {
            Err((member, format!("must have at most {bytes_max} bytes, none of them zero")))
        }
        text => Ok(text),
    };
    let password = bounded("login.password", password, PASSWORD_BYTES_MAX)?;
    let private_key = bounded("login.private_key", private_key, KEY_BYTES_MAX)?;
    let passphrase = bounded("login.passphrase", passphrase, PASSWORD_BYTES_MAX)?;
    let elevation_password = bounded("login.elevation_password", elevation_password, PASSWORD_BYTES_MAX)?;
    let (method, elevation_password) = match (elevation, elevation_password.or_else(|| password.clone())) {
        (Elevation::None, _) => (Method::None, String::new()),
        (Elevation::SudoNopasswd, _) => (Method::Sudo, String::new()),
        (Elevation::Sudo, Some(asked)) => (Method::Sudo, asked),
        (Elevation::Su, Some(asked)) => (Method::Su, asked),
        (Elevation::Sudo | Elevation::Su, None) => {
            return Err((
                "login.elevation_password",
                "sudo and su ask for one; where sudo asks for none, use sudo-nopasswd".into(),
            ));
        }
    };
    let login = match (password, private_key) {
        (Some(_), Some(_)) => {
            return Err(("login.password", "give either a password or a private key, not both".into()));
        }
        (None, None) => return Err(("login.password", "a login needs a password or a private key".into())),
        (Some(password), None) => v1::credential::Login::Password(password),
        (None, Some(pem)) if pem.contains("PRIVATE KEY-----") => {
            v1::credential::Login::PrivateKey(v1::PrivateKey { pem, passphrase: passphrase.unwrap_or_default() })
        }
        (None, Some(_)) => return Err(("login.private_key", "must be a private key in PEM or OpenSSH format".into())),
    };
    Ok(v1::Credential {
        id: String::new(),
        name: format!("{user}@{host}"),
        user,
        elevation: Some(v1::Elevation { method: method.into(), password: elevation_password }),
        login: Some(login),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login {
            user: "admin".into(),
            password: Some("s3cret".into()),
            private_key: None,
            passphrase: None,
            elevation: Elevation::None,
            elevation_password: None,
        }
    }

    #[test]
    fn sudo_asks_for_the_account_s_password_unless_another_is_given() {
        let elevated = |login: Login| credential(login, "m1").unwrap().elevation.unwrap().password;
        assert_eq!(elevated(Login { elevation: Elevation::Sudo, ..login() }), "s3cret");
        let other = Login { elevation: Elevation::Sudo, elevation_password: Some("other".into()), ..login() };
        assert_eq!(elevated(other), "other");
        assert_eq!(elevated(Login { elevation: Elevation::SudoNopasswd, ..login() }), "");
    }

    #[test]
    fn what_cannot_be_a_login_is_named_and_no_secret_with_it() {
        let key = Some("-----BEGIN PRIVATE KEY-----\ns3cret".to_string());
        for (wrong, member) in [
            (Login { user: String::new(), ..login() }, "login.user"),
            (Login { password: None, ..login() }, "login.password"),
            (Login { private_key: key.clone(), ..login() }, "login.password"),
            (Login { password: None, private_key: Some("s3cret".into()), ..login() }, "login.private_key"),
            (
                Login { password: None, private_key: key, elevation: Elevation::Su, ..login() },
                "login.elevation_password",
            ),
            (Login { password: Some("s3cret\0".into()), ..login() }, "login.password"),
        ] {
            let (named, what) = credential(wrong, "m1").unwrap_err();
            assert_eq!(named, member);
            assert!(!what.contains("s3cret"), "{what}");
        }
    }
}
