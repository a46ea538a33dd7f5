//! The gRPC contract only grows: every message, field, enum value and method that `proto/baseline.txt` lists is still there,
//! with the same number and type. What is new passes; it is protected once the baseline is renewed.
// Test code: a broken assumption has to stop the test, loudly and where it happens.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use helios_proto::wire::v1;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const RENEW: &str = "HELIOS_RENEW_BASELINE=1 cargo test --profile fast --locked -p helios-proto --features grpc --test contract";

/// The contract, a fact a line.
fn contract() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package().starts_with("helios.")) {
        let package = file.package();
        file.message_type.iter().for_each(|message| of_message(&mut lines, package, message));
        file.enum_type.iter().for_each(|words| of_enum(&mut lines, package, words));
        for service in &file.service {
            for method in &service.method {
                let stream = |streams: bool| if streams { "stream " } else { "" };
                lines.insert(format!(
                    "method {package}.{}.{}({}{}) -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                ));
            }
        }
    }
    lines
}

fn of_message(lines: &mut BTreeSet<String>, within: &str, message: &DescriptorProto) {
    let name = format!("{within}.{}", message.name());
    lines.insert(format!("message {name}"));
    for field in &message.field {
        let oneof = field.oneof_index.and_then(|at| message.oneof_decl.get(usize::try_from(at).ok()?));
        let oneof = oneof.filter(|_| !field.proto3_optional()).map(|oneof| format!(" in {}", oneof.name()));
        lines.insert(format!("field {name}.{}{}", of_field(field), oneof.unwrap_or_default()));
    }
    message.nested_type.iter().for_each(|inner| of_message(lines, &name, inner));
    message.enum_type.iter().for_each(|words| of_enum(lines, &name, words));
}

fn of_field(field: &FieldDescriptorProto) -> String {
    let label = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (_, true) => "optional ",
        (Label::Optional | Label::Required, false) => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    format!("{} = {}: {label}{kind}", field.name(), field.number())
}

fn of_enum(lines: &mut BTreeSet<String>, within: &str, words: &EnumDescriptorProto) {
    for value in &words.value {
        lines.insert(format!("value {within}.{}.{} = {}", words.name(), value.name(), value.number()));
    }
}

/// Lines of the baseline that the contract no longer has.
fn vanished<'a>(baseline: &'a str, contract: &BTreeSet<String>) -> Vec<&'a str> {
    baseline.lines().filter(|line| !line.starts_with('#') && !contract.contains(*line)).collect()
}

#[test]
fn nothing_of_the_contract_has_vanished() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.txt");
    let contract = contract();
    assert!(contract.len() > 200, "{}", contract.len());
    if std::env::var_os("HELIOS_RENEW_BASELINE").is_some() {
        let lines: Vec<_> = contract.iter().map(String::as_str).collect();
        let head = "# What the gRPC contract has; tests/contract.rs refuses changes that take any of it away. Renew it with";
        std::fs::write(&path, format!("{head}\n# {RENEW}\n{}\n", lines.join("\n"))).unwrap();
    }
    let baseline = std::fs::read_to_string(&path).unwrap();
    let gone = vanished(&baseline, &contract);
    assert!(
        gone.is_empty(),
        "the contract has lost what older programs rely on:\n  {}\nKeep it, and add beside it. Only if no program \
         that uses it is left: {RENEW}",
        gone.join("\n  ")
    );
    let new = contract.iter().filter(|line| !baseline.lines().any(|known| known == line.as_str())).count();
    if new > 0 {
        println!("{new} additions to the contract; protect them from now on: {RENEW}");
    }
}

#[test]
fn every_kind_of_loss_is_seen() {
    let contract = contract();
    let all: Vec<&str> = contract.iter().map(String::as_str).collect();
    assert!(vanished(&all.join("\n"), &contract).is_empty());
    for (was, what) in [
        ("message helios.v1.Gone", "a message"),
        ("field helios.v1.Hello.cluster = 2: string", "another number"),
        ("field helios.v1.Hello.cluster = 1: bytes", "another type"),
        ("field helios.v1.Hello.name = 1: string", "another name"),
        ("field helios.v1.DpMsg.ack = 2: .helios.v1.Ack", "no longer in a oneof"),
        ("value helios.v1.Role.ROLE_PRIMARY = 7", "a value"),
        ("method helios.v1.Discovery.Stream(.helios.v1.DpMsg) -> stream .helios.v1.CpMsg", "a method"),
    ] {
        assert_eq!(vanished(was, &contract), [was], "{what}");
    }
}
