//! Replies as data: a message of the contract becomes a tree by reflection, and the tree JSON or YAML. So the shape is
//! the contract's: its field names in its order, 64-bit numbers as numbers, enum values as lower-case words without
//! their prefix, `null` for what is absent. Pure.

use std::sync::LazyLock;

use helios_proto::wire::v1;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, Kind, ReflectMessage as _, Value};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

/// Data.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    /// Absent.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Whole(u64),
    /// A signed one.
    Signed(i64),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// Several.
    List(Vec<Tree>),
    /// Named, in this order.
    Map(Vec<(String, Tree)>),
}

/// A message whose name is known.
pub trait Named: Message {
    /// In the contract.
    const NAME: &'static str;
}

macro_rules! named {
    ($($type:ident),+) => { $(impl Named for v1::$type { const NAME: &'static str = concat!("helios.v1.", stringify!($type)); })+ };
}

named!(
    AuditReply,
    CacheInfo,
    ChangeReply,
    ConfigReply,
    DataplaneInfo,
    DiffConfigReply,
    Event,
    EventsReply,
    ExplainReply,
    HistoryReply,
    ListCachesReply,
    ListDataplanesReply,
    ListNodesReply,
    ListPoolsReply,
    NodeInfo,
    PoolInfo,
    StatusReply,
    SwitchoverEvent,
    ValidateConfigReply
);

static CONTRACT: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(v1::DESCRIPTORS).ok());

/// A message as data.
#[must_use]
pub fn of<M: Named>(message: &M) -> Tree {
    // Descriptors and types come from the same build: a test reads every message named above.
    let descriptor = CONTRACT.as_ref().and_then(|pool| pool.get_message_by_name(M::NAME));
    let dynamic = descriptor
        .and_then(|descriptor| DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok());
    dynamic.map_or(Tree::Null, |dynamic| of_message(&dynamic))
}

fn of_message(message: &DynamicMessage) -> Tree {
    let descriptor = message.descriptor();
    let fields = descriptor.fields().map(|field| {
        let absent = field.supports_presence() && !message.has_field(&field);
        let tree = if absent { Tree::Null } else { of_value(&message.get_field(&field), &field.kind()) };
        (field.name().to_owned(), tree)
    });
    Tree::Map(fields.collect())
}

fn of_value(value: &Value, kind: &Kind) -> Tree {
    match value {
        Value::Bool(it) => Tree::Bool(*it),
        Value::I32(it) => Tree::Signed((*it).into()),
        Value::I64(it) => Tree::Signed(*it),
        Value::U32(it) => Tree::Whole((*it).into()),
        Value::U64(it) => Tree::Whole(*it),
        Value::F32(it) => Tree::Float((*it).into()),
        Value::F64(it) => Tree::Float(*it),
        Value::String(it) => Tree::Text(it.clone()),
        Value::Bytes(it) => Tree::Text(String::from_utf8_lossy(it).into_owned()),
        Value::EnumNumber(it) => match kind {
            Kind::Enum(of) => Tree::Text(word(of, *it)),
            _ => Tree::Signed((*it).into()),
        },
        Value::Message(it) => of_message(it),
        Value::List(items) => Tree::List(items.iter().map(|item| of_value(item, kind)).collect()),
        // The contract has no maps.
        Value::Map(_) => Tree::Null,
    }
}

/// `ROLE_PRIMARY` of `Role` is `primary`.
fn word(of: &EnumDescriptor, number: i32) -> String {
    let Some(value) = of.get_value(number) else { return number.to_string() };
    let mut prefix = String::new();
    for c in of.name().chars() {
        if c.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    prefix.push('_');
    value.name().strip_prefix(&prefix).unwrap_or(value.name()).to_ascii_lowercase()
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_unit(),
            Self::Bool(it) => to.serialize_bool(*it),
            Self::Whole(it) => to.serialize_u64(*it),
            Self::Signed(it) => to.serialize_i64(*it),
            Self::Float(it) => to.serialize_f64(*it),
            Self::Text(it) => to.serialize_str(it),
            Self::List(items) => to.collect_seq(items),
            Self::Map(fields) => {
                let mut map = to.serialize_map(Some(fields.len()))?;
                for (name, tree) in fields {
                    map.serialize_entry(name, tree)?;
                }
                map.end()
            }
        }
    }
}

impl Tree {
    /// A map with these fields.
    #[must_use]
    pub fn map<const N: usize>(fields: [(&str, Self); N]) -> Self {
        Self::Map(fields.into_iter().map(|(name, tree)| (name.to_owned(), tree)).collect())
    }

    /// Text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// A list of texts.
    #[must_use]
    pub fn texts(texts: &[String]) -> Self {
        Self::List(texts.iter().map(|text| Self::text(text)).collect())
    }

    /// JSON over several lines.
    #[must_use]
    pub fn json(&self) -> String {
        // A tree holds nothing that JSON cannot say.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// JSON in one line.
    #[must_use]
    pub fn json_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// YAML, without a last line end.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut out = String::new();
        self.write_yaml(&mut out, 0);
        out.trim_matches('\n').to_owned()
    }

    fn is_block(&self) -> bool {
        match self {
            Self::List(items) => !items.is_empty(),
            Self::Map(fields) => !fields.is_empty(),
            _ => false,
        }
    }

    /// A block starts on a line of its own, anything else goes on where it is.
    fn write_yaml(&self, out: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        match self {
            Self::List(items) if !items.is_empty() => {
                for item in items {
                    let mut inner = String::new();
                    item.write_yaml(&mut inner, depth + 1);
                    // The dash takes the place of the first line's indent.
                    out.push_str(&format!("\n{indent}- {}", inner.trim_start()));
                }
            }
            Self::Map(fields) if !fields.is_empty() => {
                for (name, tree) in fields {
                    out.push_str(&format!("\n{indent}{name}:"));
                    if !tree.is_block() {
                        out.push(' ');
                    }
                    tree.write_yaml(out, depth + 1);
                }
            }
            // Every other value is the same in JSON, which is YAML as well.
            other => out.push_str(&other.json_line()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_names_order_and_absence() {
        let node = v1::NodeInfo {
            name: "a".to_owned(),
            role: v1::Role::Primary.into(),
            health: v1::Health::Up.into(),
            latency_ms: Some(0.5),
            lag_bytes: Some(u64::MAX),
            ops: Some(v1::NodeOps { drained: true, ..v1::NodeOps::default() }),
            ..v1::NodeInfo::default()
        };
        let json = of(&node).json_line();
        for part in [
            r#"{"name":"a","host":"","port":0,"configured_role":"unspecified","role":"primary","primary":false,"health":"up""#,
            r#""ops":{"drained":true,"weight":null,"paused":false,"pool_size":null,"reconnect":0,"accepted":null}"#,
            r#""latency_ms":0.5,"lag_bytes":18446744073709551615,"lag_ms":null"#,
        ] {
            assert!(json.contains(part), "{part} in {json}");
        }
    }

    #[test]
    fn words_of_nested_enums_and_of_two_words() {
        let event = v1::Event { kind: v1::event::Kind::Topology.into(), ..v1::Event::default() };
        assert!(of(&event).json_line().contains(r#""kind":"topology""#));
        let pool = v1::PoolInfo { mode: v1::PoolMode::Transaction.into(), ..v1::PoolInfo::default() };
        assert!(of(&pool).json_line().contains(r#""status":null,"mode":"transaction""#));
    }

    #[test]
    fn every_message_is_in_the_contract() {
        let names = [
            <v1::AuditReply as Named>::NAME,
            v1::ChangeReply::NAME,
            v1::ConfigReply::NAME,
            v1::DataplaneInfo::NAME,
            v1::DiffConfigReply::NAME,
            v1::Event::NAME,
            v1::EventsReply::NAME,
            v1::ExplainReply::NAME,
            v1::HistoryReply::NAME,
            v1::ListDataplanesReply::NAME,
            v1::ListNodesReply::NAME,
            v1::ListPoolsReply::NAME,
            v1::NodeInfo::NAME,
            v1::PoolInfo::NAME,
            v1::StatusReply::NAME,
            v1::ValidateConfigReply::NAME,
        ];
        for name in names {
            assert!(CONTRACT.as_ref().unwrap().get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn yaml_indents_and_quotes() {
        let tree = Tree::map([
            ("a", Tree::List(vec![Tree::map([("b", Tree::Whole(1)), ("c", Tree::text("x: \"y\"\n"))])])),
            ("d", Tree::List(vec![])),
            ("e", Tree::map([("f", Tree::List(vec![Tree::text("1"), Tree::Null]))])),
            ("g", Tree::Bool(true)),
        ]);
        let expected =
            "a:\n  - b: 1\n    c: \"x: \\\"y\\\"\\n\"\nd: []\ne:\n  f:\n    - \"1\"\n    - null\ng: true";
        assert_eq!(tree.yaml(), expected);
    }
}
