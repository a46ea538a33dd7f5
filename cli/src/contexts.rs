//! Whom to ask, with which token and certificates: command line, then environment, then context, then the default. Owner of the file
//! of contexts, which only its user can read. Never prints a token.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use helios_proto::model::Secret;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::secure::Certificates;

/// Where a standalone proxy listens.
pub const DEFAULT: &str = "http://127.0.0.1:9091";

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In this order; never empty.
    pub endpoints: Vec<String>,
    /// What to say to be let in.
    pub token: Option<Secret>,
    /// For endpoints with https.
    pub certificates: Certificates,
}

/// The file of contexts.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one to use without `--context`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// A context.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// In this order.
    pub endpoints: Vec<String>,
    /// The token itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Where the token is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// For endpoints with https.
    #[serde(default, rename = "tls", skip_serializing_if = "Certificates::is_empty")]
    pub certificates: Certificates,
}

/// What the environment says.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A variable that is set and not empty.
pub(crate) fn set(env: Env<'_>, name: &str) -> Option<String> {
    env(name).filter(|value| !value.is_empty())
}

/// Where the contexts are kept.
///
/// # Errors
/// There is no home.
pub fn file(env: Env<'_>) -> Result<PathBuf, Failure> {
    // XDG: what is not absolute does not count.
    let base = set(env, "XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| set(env, "HOME").map(|home| Path::new(&home).join(".config")));
    let base = base.ok_or_else(|| Failure::usage("neither XDG_CONFIG_HOME nor HOME is set"))?;
    Ok(base.join("heliosctl").join("contexts.toml"))
}

/// An endpoint as the client wants it.
fn endpoint(text: &str) -> Result<String, Failure> {
    let text = text.trim().trim_end_matches('/');
    match text.split_once("://") {
        _ if text.is_empty() => Err(Failure::usage("an endpoint is empty")),
        None => Ok(format!("http://{text}")),
        Some(("http" | "https", _)) => Ok(text.to_owned()),
        Some((scheme, _)) => Err(Failure::usage(format!(
            "{scheme}:// is not supported: write https://, or http:// without TLS"
        ))),
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read the token in {}: {error}", path.display())))?;
    match text.trim() {
        "" => Err(Failure::usage(format!("{} holds no token", path.display()))),
        token => Ok(token.to_owned()),
    }
}

impl Contexts {
    /// Reads the file; none is no contexts.
    ///
    /// # Errors
    /// It cannot be read, others may read the token in it, or it is not what this program writes.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|error| wrong(error.to_string()))?,
        };
        // The error of the parser quotes the line, which may hold a token.
        let read: Self = toml::from_str(&text)
            .map_err(|error| wrong(format!("not a file of contexts: {}", error.message())))?;
        let mode = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 && read.contexts.values().any(|context| context.token.is_some()) {
            return Err(wrong(format!(
                "it holds a token and others may read it (mode {mode:04o}); run chmod 600 on it"
            )));
        }
        Ok(read)
    }

    /// Writes the file, whole or not at all, for its user only.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let write = || -> std::io::Result<()> {
            let directory = path.parent().ok_or(std::io::ErrorKind::NotFound)?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let text = toml::to_string(self).map_err(std::io::Error::other)?;
            let new = path.with_extension(format!("toml.{}", std::process::id()));
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
                let _ = fs::remove_file(&new);
            })
        };
        write()
            .map_err(|error| Failure::new(Exit::Usage, format!("cannot write {}: {error}", path.display())))
    }

    /// The context of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let known = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
            Failure::new(Exit::NotFound, format!("there is no context {name:?} (known: {known})"))
        })
    }
}

impl Context {
    /// What the command line gives.
    ///
    /// # Errors
    /// It gives no endpoint, or a wrong one.
    pub fn of(global: &Global) -> Result<Self, Failure> {
        let endpoints: Vec<String> =
            global.endpoints.iter().map(|e| endpoint(e)).collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(Failure::usage(
                "which endpoints? Give --endpoints, such as --endpoints http://127.0.0.1:9091",
            ));
        }
        let token_file =
            global.token_file.as_ref().map(|path| std::path::absolute(path).unwrap_or(path.clone()));
        Ok(Self {
            endpoints,
            token: global.token.clone(),
            token_file,
            certificates: Certificates::of(global),
        })
    }

    /// Where its token comes from, without the token.
    #[must_use]
    pub fn token_shown(&self) -> String {
        match (&self.token, &self.token_file) {
            (Some(_), _) => "******".to_owned(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Whom to ask.
///
/// # Errors
/// A context or a token cannot be had.
pub fn target(global: &Global, env: Env<'_>) -> Result<Target, Failure> {
    let from_env = set(env, "HELIOSCTL_ENDPOINTS");
    let context = match &global.context {
        Some(name) => Some(Contexts::load(&file(env)?)?.get(name)?.clone()),
        // A context's token is for its own endpoints: others do not get it by chance.
        None if !global.endpoints.is_empty() || from_env.is_some() => None,
        None => current(env)?,
    };
    let given = match (&context, from_env) {
        _ if !global.endpoints.is_empty() => global.endpoints.clone(),
        (Some(context), _) => context.endpoints.clone(),
        (None, Some(list)) => list.split(',').map(str::to_owned).collect(),
        (None, None) => vec![DEFAULT.to_owned()],
    };
    let endpoints = given.iter().map(|text| endpoint(text)).collect::<Result<_, _>>()?;
    let certificates =
        Certificates::found(global, env, context.as_ref().map(|context| context.certificates.clone()));
    let token = match (&global.token, &global.token_file, set(env, "HELIOSCTL_TOKEN")) {
        (Some(token), ..) => Some(token.clone()),
        (None, Some(path), _) => Some(read_token(path)?),
        (None, None, Some(token)) => Some(token),
        (None, None, None) => match context.map(|context| (context.token, context.token_file)) {
            Some((Some(token), _)) => Some(token),
            Some((None, Some(path))) => Some(read_token(&path)?),
            Some((None, None)) | None => None,
        },
    };
    Ok(Target { endpoints, token: token.map(Secret::new), certificates })
}

/// The context that is used without being named on the command line.
fn current(env: Env<'_>) -> Result<Option<Context>, Failure> {
    let named = set(env, "HELIOSCTL_CONTEXT");
    let path = match (file(env), &named) {
        (Ok(path), _) => path,
        (Err(failure), Some(_)) => return Err(failure),
        // Nowhere to look, and nothing that was asked for.
        (Err(_), None) => return Ok(None),
    };
    let contexts = Contexts::load(&path)?;
    let name = named.or_else(|| contexts.current.clone());
    name.map(|name| contexts.get(&name).cloned()).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser as _;

    fn global(line: &str) -> Global {
        Cli::try_parse_from(line.split(' ')).unwrap().global
    }

    /// A home of its own, removed at the end.
    struct Home(PathBuf);

    impl Home {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("heliosctl-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn env(&self, more: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
            let mut all = vec![("XDG_CONFIG_HOME".to_owned(), self.0.display().to_string())];
            all.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            move |name| all.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn seen(global: &Global, env: Env<'_>) -> (String, Option<String>) {
        let Target { endpoints, token, .. } = target(global, env).unwrap();
        (endpoints.join(" "), token.map(|token| token.expose().to_owned()))
    }

    #[test]
    fn the_nearest_word_counts() {
        let home = Home::new("nearest");
        let plain = home.env(&[]);
        assert_eq!(seen(&global("heliosctl status"), &plain), (DEFAULT.to_owned(), None));
        let context = Context {
            endpoints: vec!["http://ctx:1".to_owned()],
            token: Some("of-context".to_owned()),
            token_file: None,
            certificates: Certificates { ca: Some("/ctx/ca.pem".into()), ..Certificates::default() },
        };
        let contexts = Contexts {
            current: Some("prod".to_owned()),
            contexts: BTreeMap::from([("prod".to_owned(), context)]),
        };
        contexts.save(&file(&plain).unwrap()).unwrap();
        let both = |e: &str, t: &str| (e.to_owned(), Some(t.to_owned()));
        assert_eq!(seen(&global("heliosctl status"), &plain), both("http://ctx:1", "of-context"));
        let token = home.env(&[("HELIOSCTL_TOKEN", "of-env")]);
        assert_eq!(seen(&global("heliosctl status"), &token), both("http://ctx:1", "of-env"));
        assert_eq!(seen(&global("heliosctl status --token t"), &token), both("http://ctx:1", "t"));
        // Other endpoints do not get the context's token unless it is asked for.
        let env = home.env(&[("HELIOSCTL_ENDPOINTS", "a:1,b:2")]);
        assert_eq!(seen(&global("heliosctl status"), &env), ("http://a:1 http://b:2".to_owned(), None));
        let flag = global("heliosctl --endpoints http://c:3/ status");
        assert_eq!(seen(&flag, &env), ("http://c:3".to_owned(), None));
        let named = global("heliosctl --endpoints c:3 --context prod status");
        assert_eq!(seen(&named, &env), both("http://c:3", "of-context"));
        let unknown = target(&global("heliosctl --context x status"), &plain).unwrap_err();
        assert_eq!((unknown.exit, unknown.text.contains("prod")), (Exit::NotFound, true));
        let wrong = target(&global("heliosctl --endpoints ftp://c:3 status"), &plain).unwrap_err();
        assert!(wrong.exit == Exit::Usage && wrong.text.contains("https://"), "{wrong}");
        // Certificates: the nearest place, a certificate and its key from the same one.
        let files = |global: &Global, env: Env<'_>| {
            let Certificates { ca, cert, key, .. } = target(global, env).unwrap().certificates;
            [ca, cert, key].map(|path| path.map(|path| path.display().to_string()).unwrap_or_default())
        };
        assert_eq!(files(&global("heliosctl status"), &plain), ["/ctx/ca.pem", "", ""]);
        let env = home.env(&[("HELIOSCTL_CERT", "/env/c"), ("HELIOSCTL_KEY", "/env/k")]);
        assert_eq!(files(&global("heliosctl status"), &env), ["/ctx/ca.pem", "/env/c", "/env/k"]);
        let flags = global("heliosctl --ca /f/ca --cert /f/c status");
        assert_eq!(files(&flags, &env), ["/f/ca", "/f/c", ""]);
        let lonely = target(&flags, &env).unwrap().certificates.open().err().unwrap();
        assert!(lonely.exit == Exit::Usage && lonely.text.contains("--key"), "{lonely}");
        let bare = Certificates::default().open().err().unwrap();
        assert!(bare.exit == Exit::Usage && bare.text.contains("--ca"), "{bare}");
    }

    #[test]
    fn the_file_is_private_and_stays_so() {
        let home = Home::new("private");
        let env = home.env(&[]);
        let path = file(&env).unwrap();
        let mut contexts = Contexts::default();
        let given = Context::of(&global("heliosctl --endpoints a:1 --token hush-hush status")).unwrap();
        assert_eq!(given.token_shown(), "******");
        contexts.contexts.insert("a".to_owned(), given);
        contexts.save(&path).unwrap();
        contexts.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Contexts::load(&path).err().unwrap().to_string();
        assert!(refused.contains("chmod 600") && !refused.contains("hush"), "{refused}");
        fs::write(&path, "[contexts.a]\nendpoints = 3\ntoken = \"hush-hush\"").unwrap();
        let refused = Contexts::load(&path).err().unwrap().to_string();
        assert!(!refused.contains("hush"), "{refused}");
    }
}
