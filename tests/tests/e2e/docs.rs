//! What README and docs/ show is true: every block of code is run, loaded or compared, by the kind that stands behind
//! its language in the fence. Only addresses and the place of the file differ. Never runs what is marked `by-hand`.
//!
//! `toml config`: a whole file. `toml control-plane`: one of the control plane. `toml part`: tables for one. `sh run`: commands that succeed. `sh serve`: the proxy, which
//! starts and ends with SIGTERM. `sh make`: targets that exist. `sql run`: statements; `sql superuser`: those of a superuser; `sql elsewhere`: the same in another database. `json PATH`: the shape of an
//! answer. `python run`, `js run`, `java run`, `go run`: whole programs. `rust FILE`: a part of that file, which is compiled and run. `yaml values`: of the Helm
//! chart. `mermaid`: to look at. `ini pgbouncer`: a file for the commands after it. `yaml prometheus`: what promtool accepts, with the rules beside it. `text`: to look at.

use std::path::{Path, PathBuf};
use std::process::Command;

use helios_tests::programs::FETCHED;
use helios_tests::proxy::{check_by, program};
use helios_tests::{Cluster, Config, Proxy, loudly, prometheus};
use serde_json::Value;

use super::{chart, drivers};

/// One block of code of one document.
struct Block {
    at: String,
    kind: String,
    text: String,
}

/// What a served proxy logs once it takes clients.
const SERVES: &str = "listening address=";
/// Starts `$1`, waits until it serves, ends it; succeeds if the proxy ends with 0.
const SERVE: &str = r#"
sh -c "exec env $1" 2>"$2" &
proxy=$!
for i in $(seq 600); do grep -q "$3" "$2" && break; kill -0 $proxy || break; sleep 0.05; done
kill -TERM $proxy
wait $proxy
grep -q "$3" "$2""#;
const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// In a database of its own, which nobody else feels.
fn elsewhere(sql: &str) {
    let primary = Cluster::shared().primary();
    primary.superuser().batch_execute("create database elsewhere").unwrap();
    primary.superuser_of("elsewhere").batch_execute(sql).unwrap();
    primary.superuser().batch_execute("drop database elsewhere").unwrap();
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn documents() -> Vec<PathBuf> {
    let mut found: Vec<_> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root().join(name)).into();
    for folder in ["docs", "docs/decisions", "docs/reference"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap().path());
        found.extend(entries.filter(|p| p.extension().is_some_and(|e| e == "md")));
    }
    found
}

fn blocks() -> Vec<Block> {
    let mut found = Vec::new();
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut open: Option<Block> = None;
        for (line, number) in text.lines().zip(1..) {
            match (line.strip_prefix("```"), open.as_mut()) {
                (Some(kind), None) => {
                    let at = format!("{}:{number}", path.strip_prefix(root()).unwrap().display());
                    open = Some(Block { at, kind: kind.to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => found.extend(open.take()),
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", path.display());
    }
    found
}

/// The test's own world, in place of the addresses and files that the documents name.
struct World {
    proxy: Proxy,
    config: String,
    /// Where operators reach the proxy.
    management: String,
    dir: PathBuf,
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::shared();
        cluster.execute("create role myuser login password 'myuser-secret'");
        cluster.execute("create database mydb owner myuser");
        let config = Config::new(cluster);
        let dir = std::env::temp_dir().join(format!("helios-docs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let _ = std::os::unix::fs::symlink(program(), dir.join("heliosdb-proxy"));
        std::fs::write(dir.join("config.toml"), config.text()).unwrap();
        let _ = std::os::unix::fs::symlink(program().with_file_name("heliosctl"), dir.join("heliosctl"));
        let management = format!("127.0.0.1:{}", helios_tests::free_port());
        // `ops` of the console has the password that the shell knows.
        let operated = format!(
            "{}\n[management]\nlisten_address = \"{management}\"\n[console]\nadmin_users = [\"ops\"]\n\
             [[users]]\nname = \"ops\"\npassword = \"myuser-secret\"\n",
            config.text()
        );
        let world = Self { proxy: Proxy::start(&operated).ready(), config: config.text(), management, dir };
        world.client().batch_execute("create table accounts (id int, balance int)").unwrap();
        world.client().batch_execute("create table events (id int)").unwrap();
        cluster.execute("select 1"); // waits until every standby has them
        world
    }

    fn client(&self) -> postgres::Client {
        self.proxy.config("myuser").dbname("mydb").connect(postgres::NoTls).unwrap()
    }

    fn command(&self, text: &str) -> String {
        let primary = format!("127.0.0.1:{}", Cluster::shared().primary().port);
        let standby = format!("127.0.0.1:{}", Cluster::shared().node("standby").port);
        text.replace("/etc/heliosproxy/config.toml", "config.toml")
            .replace("target/release/heliosdb-proxy", "heliosdb-proxy")
            .replace("localhost:9090", &self.proxy.admin.to_string())
            .replace("-h localhost -p 5433", &format!("-h 127.0.0.1 -p {}", self.proxy.port()))
            .replace("--listen 127.0.0.1:5433", "--listen 127.0.0.1:0 --admin 127.0.0.1:0")
            .replace("db1:5432", &primary)
            .replace("db2:5432", &standby)
    }

    fn shell(&self, at: &str, script: &str, arguments: &[&str]) {
        let path = format!("{}:{}", self.dir.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-e", "-c", script, "sh"]).args(arguments).current_dir(&self.dir).env("PATH", path);
        command
            .env("PGPASSWORD", "myuser-secret")
            .env_remove("RUST_LOG")
            .env("XDG_CONFIG_HOME", self.dir.join("home"))
            .env("HELIOSCTL_ENDPOINTS", format!("http://{}", self.management))
            .stdin(std::process::Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{at}: {script} {arguments:?}: {output:?}");
    }

    /// Runs a whole program against the proxy; it has to end well.
    fn program(&self, at: &str, kind: &str, text: &str) {
        let port = self.proxy.port().to_string();
        let text = text.replace("proxy.example.com", "127.0.0.1").replace("5433", &port);
        let (language, _) = kind.split_once(' ').unwrap();
        let file =
            self.dir.join(format!("Application.{}", if language == "python" { "py" } else { language }));
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap().to_owned();
        let command = match language {
            "python" => vec!["/usr/bin/python3".to_owned(), path],
            "js" if !Path::new(FETCHED).join("node_modules/pg").exists() => {
                return loudly(&format!("SKIPPED {at}: no `pg` for node on this machine"));
            }
            "js" => vec!["node".to_owned(), path],
            "java" => drivers::JAVA.iter().map(|&word| word.to_owned()).chain([path]).collect(),
            _ => {
                drivers::build_go(&file, &self.dir.join("application"));
                vec![self.dir.join("application").to_str().unwrap().to_owned()]
            }
        };
        let mut run = Command::new("timeout");
        run.arg("60").args(&command).env("PGPASSWORD", "myuser-secret");
        let output = run.env("NODE_PATH", format!("{FETCHED}/node_modules")).output().unwrap();
        assert!(output.status.success(), "{at}: {output:?}");
    }

    fn try_block(&self, block: &Block) {
        let Block { at, kind, text } = block;
        let here = || text.replace("/etc/heliosproxy/", &format!("{}/", self.dir.display()));
        match kind.split_once(' ').unwrap_or((kind, "")) {
            ("toml", "config") => loads(at, &here()),
            ("toml", "control-plane") => {
                loads_in(&program().with_file_name("helios-controlplane"), at, &here())
            }
            ("toml", "part") => loads(at, &format!("{}\n{}", self.config, here())),
            ("sh", "run") => self.shell(at, &self.command(text), &[]),
            ("sh", "serve") => self.shell(at, SERVE, &[self.command(text).trim(), "serve.log", SERVES]),
            ("sh", "make") => text.lines().for_each(|line| is_target(at, line)),
            ("sql", "run") => {
                let mut client = self.client();
                text.lines().for_each(|sql| drop(client.simple_query(sql).expect(sql)));
            }
            ("json", path) => {
                let shown: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{at}: {e}"));
                let real: Value = serde_json::from_str(&self.proxy.get(path).body).unwrap();
                assert_eq!(shape(&shown), shape(&real), "{at}");
            }
            ("sql", "superuser") => Cluster::shared().execute(text),
            ("sql", "elsewhere") => elsewhere(text),
            ("python" | "js" | "java" | "go", "run") => self.program(at, kind, text),
            ("rust", file) => {
                let file = root().join("tests/tests/e2e").join(file);
                let source = std::fs::read_to_string(&file).unwrap();
                assert!(source.contains(text.as_str()), "{at}: not in {}", file.display());
                drivers::guide::run(&format!(
                    "host=127.0.0.1 port={} user=myuser password=myuser-secret dbname=mydb",
                    self.proxy.port()
                ));
            }
            ("yaml", "values") => chart::takes(at, text),
            ("sh", "by-hand") | ("text" | "mermaid", "") => {}
            ("ini", "pgbouncer") => std::fs::write(self.dir.join("pgbouncer.ini"), text).unwrap(),
            ("yaml", "prometheus") => prometheus::check_config(text),
            _ => panic!("{at}: a block of the kind {kind:?} is not known"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn loads(at: &str, text: &str) {
    loads_in(&program(), at, text);
}

fn loads_in(program: &Path, at: &str, text: &str) {
    let token = "a-token-of-more-than-sixteen-bytes";
    let variables = [
        ("REPORTING_PASSWORD", "secret"),
        ("OPS_PASSWORD", "secret"),
        ("METRICS_PASSWORD", "secret"),
        ("APP_VERIFIER", VERIFIER),
        ("HELIOS_DATAPLANE_TOKEN", token),
        ("HELIOS_ADMIN_TOKEN", "another-token-of-more-than-sixteen-bytes"),
        ("HELIOS_PROBE_PASSWORD", "secret"),
        ("HELIOS_SWITCHOVER_PASSWORD", "secret"),
    ];
    let output = check_by(program, text, &variables);
    assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_target(at: &str, line: &str) {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let target = line.strip_prefix("make ").and_then(|l| l.split_whitespace().next());
    let target = target.unwrap_or_else(|| panic!("{at}: {line:?} makes nothing"));
    assert!(makefile.lines().any(|l| l.starts_with(&format!("{target}:"))), "{at}: no target {target}");
}

/// The names in a JSON value, of an array those of its first element.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, v)| (name.clone(), shape(v))).collect(),
        Value::Array(items) => Value::Array(items.first().map(shape).into_iter().collect()),
        _ => Value::Null,
    }
}

#[test]
fn every_block_of_the_documents_is_true() {
    let (world, blocks) = (World::new(), blocks());
    assert!(blocks.len() > 10, "the documents have blocks");
    blocks.iter().for_each(|block| world.try_block(block));
}

/// What a heading is called in a link, as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

/// The lines of a document outside of blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let all = prose(&text).collect::<Vec<_>>().join("\n");
        for (at, _) in all.match_indices("](") {
            let link = all[at + 2..].split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: no {link}", document.display());
            if !place.is_empty() {
                let there = std::fs::read_to_string(&target).unwrap();
                let mut headings = prose(&there).filter_map(|line| line.strip_prefix('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == place);
                assert!(found, "{}: no heading for {link}", document.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 150, "{seen}");
}

#[test]
fn every_document_is_linked_from_the_first_one() {
    let mut reached = std::collections::BTreeSet::new();
    let mut left = vec![root().join("README.md")];
    while let Some(document) = left.pop() {
        let Ok(document) = document.canonicalize() else { continue };
        if document.extension().is_none_or(|e| e != "md") || !reached.insert(document.clone()) {
            continue;
        }
        let text = std::fs::read_to_string(&document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        left.extend(links.filter(|link| !link.is_empty()).map(|link| document.parent().unwrap().join(link)));
    }
    // The folder of decisions is linked as a whole.
    for document in documents().into_iter().filter(|path| !path.to_str().unwrap().contains("/decisions/")) {
        assert!(reached.contains(&document.canonicalize().unwrap()), "{}: no way there", document.display());
    }
}

/// Every source file of the workspace, as one text.
fn sources(dir: &Path, out: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !["target", ".git", "node_modules"].contains(&name.to_str().unwrap()) {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let (mut all, mut seen) = (String::new(), 0);
    sources(&root(), &mut all);
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for word in prose(&text).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
            let Some((_, name)) = word.rsplit_once("::").filter(|_| word.chars().all(plain)) else {
                continue;
            };
            if name.matches('_').count() > 1 {
                assert!(all.contains(&format!("fn {name}(")), "{}: no test {word}", document.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen}");
}
