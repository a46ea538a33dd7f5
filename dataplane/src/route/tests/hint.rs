//! What is a hint, what is not, and what it asks for.

use std::time::Duration;

use crate::route::{Hint, NoFunctions, RouteHint, classify};

fn hint(sql: &str) -> Hint {
    classify(sql.as_bytes(), true, &NoFunctions).hint
}

#[test]
fn the_guides_examples() {
    let primary = hint("SELECT /* helios:route=primary */ balance FROM accounts WHERE id = 1;");
    assert_eq!(primary, Hint { route: Some(RouteHint::Primary), ..Hint::default() });
    let standby = hint("/* helios:route=standby */ SELECT * FROM analytics_data");
    assert_eq!(standby, Hint { route: Some(RouteHint::Standby), ..Hint::default() });
    assert_eq!(hint("SELECT /* helios:cache=skip */ 1"), Hint { cache_skip: true, ..Hint::default() });
    let both = Hint { route: Some(RouteHint::Standby), cache_skip: true, ..Hint::default() };
    for sql in [
        "SELECT /* helios:route=standby helios:cache=skip */ * FROM events;",
        "SELECT * FROM events /*helios:route=standby,cache=skip*/",
        "SELECT /*\n\thelios:route=standby ,, cache=skip\n*/ 1",
        "/* helios:cache=skip */ SELECT 1 /* helios:route=standby */",
        "SELECT 1; /* HELIOS:Route=Standby helios:CACHE=SKIP */",
    ] {
        assert_eq!(hint(sql), both, "{sql}");
    }
}

#[test]
fn names_times_and_what_means_nothing() {
    let all =
        hint("/* helios:node=replica-1 ttl=1500ms route=any colour=blue helios: cache=maybe x */ select 1");
    assert_eq!(all.node.as_deref(), Some("replica-1"));
    assert_eq!(
        (all.ttl, all.route, all.unknown),
        (Some(Duration::from_millis(1500)), Some(RouteHint::Any), 3)
    );
    assert!(!all.conflict && !all.cache_skip);
    for (text, seconds) in [("5", 5), ("5s", 5), ("2m", 120), ("1h", 3600)] {
        assert_eq!(
            hint(&format!("/* helios:ttl={text} */ select 1")).ttl,
            Some(Duration::from_secs(seconds))
        );
    }
    for bad in [
        "ttl=",
        "ttl=x",
        "ttl=99999999999999999999",
        "ttl=18446744073709551615h",
        "route=elsewhere",
        "node=",
        "route",
    ] {
        let hint = hint(&format!("/* helios:{bad} */ select 1"));
        assert_eq!(hint, Hint { unknown: 1, ..Hint::default() }, "{bad}");
    }
    assert_eq!(hint(&format!("/* helios:{} */", "x ".repeat(1000))).unknown, 255);
}

#[test]
fn hints_that_disagree_mean_the_primary_and_no_cache() {
    for sql in [
        "/* helios:route=standby helios:route=primary */ select 1",
        "/* helios:route=standby */ select 1 /* helios:route=replica */",
        "/* helios:node=a node=b */ select 1",
    ] {
        let hint = hint(sql);
        assert!(hint.conflict && hint.cache_skip && hint.route == Some(RouteHint::Primary), "{sql}");
    }
    assert!(!hint("/* helios:route=standby route=standby node=a node=a */ select 1").conflict);
}

#[test]
fn what_only_looks_like_a_hint() {
    for sql in [
        "select '/* helios:route=primary */'",
        r"select E'\' /* helios:route=primary */ '",
        "select $$ /* helios:route=primary */ $$",
        "select $a$ /* helios:route=primary */ $b$ /* helios:cache=skip */ $a$",
        "select \"/* helios:route=primary */\"",
        "select U&'/* helios:route=primary */', U&\"/* helios:route=primary */\", n'/* helios:x */', x'/* helios:x */'",
        "select 1 -- /* helios:route=primary */",
        "select 1 -- helios:route=primary",
        "select 'a'\n '/* helios:route=primary */'",
        "select 'a' -- c\n '/* helios:route=primary */'",
        r"select e'a'
 '\'/* helios:route=primary */'",
        "/* a /* helios:route=primary */ b */ select 1",
        "/*+ x helios:route=primary */ select 1",
        "/*action='helios:route=primary',traceparent='00'*/ select 1",
        "/* xhelios:route=primary */ select 1",
        "/* helio */ select 1",
        "select a$$ /* helios */ , b from t",
    ] {
        assert_eq!(hint(sql), Hint::default(), "{sql}");
    }
    let off = classify(br"select '\' /* helios:route=primary */ '", false, &NoFunctions);
    assert_eq!(off.hint, Hint::default());
    let on = classify(br"select '\' /* helios:route=primary */ ", true, &NoFunctions);
    assert_eq!(on.hint.route, Some(RouteHint::Primary));
    assert!(hint("select $1$ /* helios:cache=skip */ $1$").cache_skip, "$1$ opens nothing");
    assert!(hint("select a$b$ /* helios:cache=skip */ $b$").cache_skip, "no dollar quote after a name");
}
