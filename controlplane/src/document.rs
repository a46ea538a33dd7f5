//! The text of a configuration: what of it belongs in the store, its form without secrets, and edits that leave the
//! rest as it was written, comments included. Pure. Never judges: the caller parses the result.

use helios_proto::config::keys::{self, Kind, Section};
use helios_proto::model::{Node, NodeName};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, value};

/// Stands for a secret, out and in.
pub const DOTS: &str = "******";

/// Why a text cannot be edited.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// Dots where no secret is in force.
    #[error("{0} is dots, and there is no secret in force that they could stand for")]
    NoSecret(String),
    /// `nodes` is not written as a list of tables.
    #[error("nodes must be written [[nodes]]")]
    Nodes,
}

type Edited<T> = Result<T, EditError>;

fn parse(text: &str) -> Edited<DocumentMut> {
    text.parse().map_err(|error: toml_edit::TomlError| EditError::Syntax(error.message().to_owned()))
}

/// The text without what belongs to a process, and the names of what was taken out.
pub fn spec_of(text: &str) -> Edited<(String, Vec<&'static str>)> {
    let mut document = parse(text)?;
    let out = keys::of_process().filter(|name| document.remove(name).is_some()).collect();
    Ok((document.to_string(), out))
}

/// The text with dots for its secrets.
pub fn redacted(text: &str) -> Edited<String> {
    let mut document = parse(text)?;
    for_each_secret(&mut document, &mut |_, secret| {
        // The name of a variable is no secret; its default may be one.
        let text = secret.as_str().unwrap_or_default();
        let only_names = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        if only_names.is_none_or(|name| name.contains([':', '$', '}'])) {
            replace(secret, DOTS);
        }
        Ok(())
    })?;
    Ok(document.to_string())
}

/// The text with the secrets of `current` where it has dots.
pub fn restored(text: &str, current: &str) -> Edited<String> {
    let mut held: Vec<(String, String)> = Vec::new();
    for_each_secret(&mut parse(current)?, &mut |place, secret| {
        held.push((place, secret.as_str().unwrap_or_default().to_owned()));
        Ok(())
    })?;
    let mut document = parse(text)?;
    for_each_secret(&mut document, &mut |place, secret| {
        if secret.as_str() == Some(DOTS) {
            let found = held.iter().find(|(at, _)| *at == place);
            let (_, found) = found.ok_or(EditError::NoSecret(place))?;
            replace(secret, found);
        }
        Ok(())
    })?;
    Ok(document.to_string())
}

/// Adds a node at the end; without a name its role will name it.
pub fn with_node(text: &str, node: &Node, named: bool) -> Edited<String> {
    let mut document = parse(text)?;
    let mut table = Table::new();
    if named {
        table.insert("name", value(node.name.as_str()));
    }
    table.insert("host", value(node.host.as_str()));
    table.insert("port", value(i64::from(node.port)));
    table.insert("role", value(node.role.word()));
    table.insert("weight", value(i64::from(node.weight)));
    match document.entry("nodes").or_insert(Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(nodes) => nodes.push(table),
        Item::Value(Value::Array(nodes)) => nodes.push(table.into_inline_table()),
        _ => return Err(EditError::Nodes),
    }
    Ok(document.to_string())
}

/// Takes out the node at `index`. The others, called `names` in file order, get their names written down, since a name
/// that comes from role and order would move to another node.
pub fn without_node(text: &str, index: usize, names: &[NodeName]) -> Edited<String> {
    let mut document = parse(text)?;
    let nodes = document.get_mut("nodes").ok_or(EditError::Nodes)?;
    let name_them = |tables: &mut dyn Iterator<Item = &mut dyn TableLike>| {
        for (table, name) in tables.zip(names) {
            if !table.contains_key("name") {
                table.insert("name", value(name.as_str()));
            }
        }
    };
    match nodes {
        Item::ArrayOfTables(nodes) => {
            name_them(&mut nodes.iter_mut().map(|table| -> &mut dyn TableLike { table }));
            if index < nodes.len() {
                nodes.remove(index);
            }
        }
        Item::Value(Value::Array(nodes)) => {
            let tables = nodes.iter_mut().filter_map(Value::as_inline_table_mut);
            name_them(&mut tables.map(|table| -> &mut dyn TableLike { table }));
            if index < nodes.len() {
                nodes.remove(index);
            }
        }
        _ => return Err(EditError::Nodes),
    }
    Ok(document.to_string())
}

/// Unified diff of two texts, without secrets; empty if they are equal.
pub fn diff(old: (&str, &str), new: (&str, &str)) -> Edited<String> {
    let (from, to) = (redacted(old.1)?, redacted(new.1)?);
    if from == to {
        let secrets = if old.1 == new.1 { String::new() } else { "secrets differ\n".to_owned() };
        return Ok(secrets);
    }
    let lines = similar::TextDiff::from_lines(&from, &to);
    Ok(lines.unified_diff().context_radius(3).header(old.0, new.0).to_string())
}

/// Replaces a value and leaves the space and the comments around it.
fn replace(old: &mut Value, text: &str) {
    let decor = old.decor().clone();
    *old = Value::from(text);
    *old.decor_mut() = decor;
}

type Visit<'a> = &'a mut dyn FnMut(String, &mut Value) -> Edited<()>;

/// Shows every secret of a document, but for those that belong to a process, with a name for its place.
fn for_each_secret(document: &mut DocumentMut, visit: Visit<'_>) -> Edited<()> {
    for section in Section::NAMED {
        if section.is_of_process() {
            continue;
        }
        let Some(item) = document.get_mut(section.name()) else { continue };
        let header = section.header();
        match item {
            Item::ArrayOfTables(tables) => {
                for table in tables.iter_mut() {
                    secrets_of(table, *section, &header, visit)?;
                }
            }
            Item::Value(Value::Array(elements)) => {
                for table in elements.iter_mut().filter_map(Value::as_inline_table_mut) {
                    secrets_of(table, *section, &header, visit)?;
                }
            }
            other => {
                if let Some(table) = other.as_table_like_mut() {
                    secrets_of(table, *section, &header, visit)?;
                }
            }
        }
    }
    Ok(())
}

fn secrets_of(table: &mut dyn TableLike, section: Section, header: &str, visit: Visit<'_>) -> Edited<()> {
    let name = table.get("name").and_then(Item::as_str).unwrap_or_default().to_owned();
    for key in section.keys().filter(|key| key.kind == Kind::Secret) {
        if let Some(secret) = table.get_mut(key.name).and_then(Item::as_value_mut) {
            let of = if name.is_empty() { String::new() } else { format!(" {name:?}") };
            visit(format!("{} in {header}{of}", key.name), secret)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::Role;

    const TEXT: &str = r#"# ours
listen_address = "127.0.0.1:1"
write_timeout_secs = 3 # kept
[management]
enabled = true
[[management.tokens]]
name = "x"
role = "admin"
token = "0123456789abcdef"
[health]
user = "p"
password = "hush" # why
[[users]]
name = "a"
password = "${PASSWORD}"
[[users]]
name = "b"
scram_verifier = "${V:-hush}"
# first
[[nodes]]
host = "h1"
role = "primary"
[[nodes]]
host = "h2"
role = "replica"
[[nodes]]
host = "h3"
role = "replica"
"#;

    fn node(name: &str) -> Node {
        let (host, role) = ("h4".to_owned(), Role::Replica);
        Node { name: NodeName::new(name), host, port: 5433, role, weight: 7, max_connections: None }
    }

    #[test]
    fn what_belongs_to_the_process_stays_out() {
        let (text, out) = spec_of(TEXT).unwrap();
        assert_eq!(out, ["listen_address", "management"]);
        assert!(
            text.contains("write_timeout_secs = 3 # kept") && text.contains("# first\n[[nodes]]"),
            "{text}"
        );
        assert!(!text.contains("0123456789abcdef") && !text.contains("listen_address"), "{text}");
    }

    #[test]
    fn secrets_become_dots_and_dots_become_secrets() {
        let shown = redacted(TEXT).unwrap();
        assert!(!shown.contains("hush"), "{shown}");
        assert!(
            shown.contains("password = \"******\" # why") && shown.contains("\"${PASSWORD}\""),
            "{shown}"
        );
        assert_eq!(restored(&shown, TEXT).unwrap(), TEXT);
        let stranger = shown.replace("name = \"b\"", "name = \"c\"");
        let error = restored(&stranger, TEXT).unwrap_err().to_string();
        assert!(error.starts_with("scram_verifier in [[users]] \"c\" is dots"), "{error}");
    }

    #[test]
    fn inline_tables_have_secrets_too() {
        let text = "users = [{ name = \"a\", password = \"hush\" }]\nhealth = { user = \"x\", password = \"hush\" }\n";
        assert!(!redacted(text).unwrap().contains("hush"));
    }

    #[test]
    fn nodes_come_and_go_and_keep_their_names() {
        let text = with_node(TEXT, &node("new"), true).unwrap();
        assert!(text.ends_with(
            "[[nodes]]\nname = \"new\"\nhost = \"h4\"\nport = 5433\nrole = \"replica\"\nweight = 7\n"
        ));
        let names = ["primary", "replica-1", "replica-2"].map(NodeName::new);
        let text = without_node(TEXT, 1, &names).unwrap();
        assert!(
            !text.contains("h2") && text.contains("name = \"replica-2\"") && text.contains("# ours"),
            "{text}"
        );
        let inline = "nodes = [{ host = \"a\", role = \"primary\" }, { host = \"b\", role = \"replica\" }]\n";
        let text = without_node(&with_node(inline, &node("n"), false).unwrap(), 0, &names).unwrap();
        assert!(text.contains("replica-1") && !text.contains("\"a\"") && text.contains("h4"), "{text}");
        assert_eq!(with_node("nodes = 3", &node("n"), true), Err(EditError::Nodes));
    }

    #[test]
    fn a_diff_shows_lines_and_no_secret() {
        let new = TEXT.replace("h2", "h9").replace("hush", "shush");
        let shown = diff(("r1", TEXT), ("new", &new)).unwrap();
        assert!(shown.contains("-host = \"h2\"\n+host = \"h9\"") && !shown.contains("hush"), "{shown}");
        assert_eq!(diff(("a", TEXT), ("b", TEXT)).unwrap(), "");
        let secrets = TEXT.replace("hush", "shush");
        assert_eq!(diff(("a", TEXT), ("b", &secrets)).unwrap(), "secrets differ\n");
    }
}
