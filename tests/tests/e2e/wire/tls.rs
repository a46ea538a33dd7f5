//! Rows 15 to 20 of the bad-input table: TLS where it is asked for, where it is not, and what is around it. Also what came
//! with protocol 3.2 and PostgreSQL 17: keys of 32 bytes, TLS without a request.

use helios_tests::raw::{query, startup};

use super::write::*;
use super::{Case, End, Step};

const NAME: &[&str] = &["postgresql"];

/// On a connection that is encrypted after a request.
fn inside(row: &'static str, what: &'static str, steps: Vec<Step>, end: End) -> Case {
    let begin = vec![Step::Send(SSL.to_vec()), Step::Byte, Step::Tls(&[])];
    case(row, what, begin.into_iter().chain(steps).collect(), end)
}

/// On a connection that begins with TLS.
fn direct(
    row: &'static str,
    what: &'static str,
    names: &'static [&'static str],
    steps: Vec<Step>,
    end: End,
) -> Case {
    case(row, what, [Step::Tls(names)].into_iter().chain(steps).collect(), end)
}

fn log_in(version: u32) -> Vec<Step> {
    vec![Step::Send(startup(version, &APP)), Step::Authenticate("app".into(), "app-secret".into())]
}

/// Where there is no TLS.
pub(super) fn without() -> Vec<Case> {
    let request = vec![Step::Send(SSL.to_vec()), Step::Byte];
    let then = |more: Vec<Step>| request_and(&request, more);
    let key = |what, version, expect| {
        expecting(case("14", what, vec![Step::Send(startup(version, &APP)), Step::Key], End::Probe), expect)
    };
    vec![
        case("15", "SSLRequest, then a login", then(log_in(V3)), End::Probe),
        case("18", "SSLRequest twice", then(vec![Step::Send(SSL.to_vec())]), End::Closed),
        case("19", "SSLRequest x 1,000", vec![Step::Send(SSL.repeat(1000)), Step::Byte], End::Closed),
        case(
            "20",
            "SSLRequest and a startup in one segment",
            vec![Step::Send([&SSL[..], &startup(V3, &APP)].concat()), Step::Byte],
            End::Closed,
        ),
        cut(
            "17",
            "TLS without a request",
            [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 194]].concat(),
        ),
        key("key under 3.0", V3, "key of 4 Z:I T1 D:probe C:SELECT 1 Z:I alive"),
        key("key under 3.2", V3_2, "key of 32 Z:I T1 D:probe C:SELECT 1 Z:I alive"),
    ]
}

/// A second use of the same beginning.
fn request_and(request: &[Step], more: Vec<Step>) -> Vec<Step> {
    request.iter().cloned().chain(more).collect()
}

/// Where there is TLS.
pub(super) fn requests() -> Vec<Case> {
    let alive = "ready Z:I T1 D:probe C:SELECT 1 Z:I alive";
    let more = |bytes: Vec<u8>| vec![Step::Send([&SSL[..], &bytes].concat()), Step::Byte];
    vec![
        expecting(
            direct(
                "15",
                "TLS without a request or a name",
                &[],
                vec![Step::Send(startup(V3, &APP))],
                End::Cut,
            ),
            "closed",
        ),
        expecting(
            direct("16", "TLS without a request, for http/1.1", &["http/1.1"], vec![], End::Cut),
            "alert NoApplicationProtocol",
        ),
        expecting(direct("16", "TLS without a request, for PostgreSQL", NAME, log_in(V3), End::Probe), alive),
        inside("16", "TLS after a request", log_in(V3), End::Probe),
        case(
            "16",
            "TLS after a request, with the name",
            request_and(&[Step::Send(SSL.to_vec()), Step::Byte, Step::Tls(NAME)], log_in(V3)),
            End::Probe,
        ),
        case("17", "noise in place of TLS", vec![Step::Send(vec![0x16, 3, 1, 0, 4, 9, 9, 9, 9])], End::Cut),
        case(
            "17",
            "noise after a request",
            vec![Step::Send(SSL.to_vec()), Step::Byte, Step::Send(b"noise, more noise".to_vec())],
            End::Cut,
        ),
        inside("18", "SSLRequest inside TLS", vec![Step::Send(SSL.to_vec())], End::Closed),
        expecting(
            direct(
                "18",
                "SSLRequest twice inside TLS without a request",
                NAME,
                vec![Step::Send(SSL.to_vec()), Step::Byte, Step::Send(SSL.to_vec())],
                End::Closed,
            ),
            "byte N E:FATAL:0A000 closed",
        ),
        expecting(
            direct(
                "21",
                "GSSENCRequest inside TLS without a request, then a login",
                NAME,
                request_and(&[Step::Send(GSS.to_vec()), Step::Byte], log_in(V3)),
                End::Probe,
            ),
            "byte N ready Z:I T1 D:probe C:SELECT 1 Z:I alive",
        ),
        expecting(case("19", "SSLRequest x 1,000", more(SSL.repeat(999)), End::Cut), "byte S closed"),
        expecting(
            case("20", "SSLRequest and a startup in one segment", more(startup(V3, &APP)), End::Cut),
            "byte S closed",
        ),
        inside(
            "20",
            "startup and more in one segment inside TLS",
            vec![Step::Send([startup(V3, &APP), query("select 1")].concat())],
            End::Closed,
        ),
        case("20", "a login without TLS", log_in(V3), End::Probe),
        inside(
            "40",
            "unknown type inside TLS",
            request_and(&log_in(V3), vec![Step::Send(b"z\0\0\0\x04".to_vec())]),
            End::Closed,
        ),
    ]
}
