//! `[[hba]]`: which clients may try to log in, and how. A pure function; the first rule that fits decides.

use helios_pgwire::PgError;
use helios_proto::model::{HbaMethod, HbaRule};
use std::net::IpAddr;

/// A client that wants in.
#[derive(Debug, Clone, Copy)]
pub struct Applicant<'a> {
    /// Role.
    pub user: &'a [u8],
    /// Database.
    pub database: &'a [u8],
    /// It wants the WAL, of no database.
    pub replication: bool,
    /// Where it comes from.
    pub address: IpAddr,
    /// The connection has TLS.
    pub tls: bool,
}

/// What the rules say of a client. Without any rule everybody may try.
///
/// # Errors
/// 28000 in PostgreSQL's words, for the client.
pub fn admit(rules: &[HbaRule], who: Applicant<'_>) -> Result<HbaMethod, PgError> {
    if rules.is_empty() {
        return Ok(HbaMethod::Auto);
    }
    let shown = || {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let encryption = if who.tls { "SSL encryption" } else { "no encryption" };
        let (host, user, database) = (who.address.to_canonical(), text(who.user), text(who.database));
        match who.replication {
            true => format!("replication connection from host \"{host}\", user \"{user}\", {encryption}"),
            false => format!("host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"),
        }
    };
    match rules.iter().find(|rule| fits(rule, who)).map(|rule| rule.method) {
        Some(HbaMethod::Reject) => {
            Err(PgError::fatal("28000", format!("[[hba]] rejects connection for {}", shown())))
        }
        Some(method) => Ok(method),
        None => Err(PgError::fatal("28000", format!("no [[hba]] entry for {}", shown()))),
    }
}

fn fits(rule: &HbaRule, who: Applicant<'_>) -> bool {
    let among =
        |names: &[String], name: &[u8]| names.is_empty() || names.iter().any(|n| n.as_bytes() == name);
    among(&rule.users, who.user)
        // As in pg_hba.conf, a rule for all databases is not one for replication.
        && match who.replication {
            true => rule.databases.iter().any(|name| name == "replication"),
            false => among(&rule.databases, who.database),
        }
        && rule.address.is_none_or(|network| network.contains(who.address))
        && (who.tls || !rule.tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::Cidr;

    fn rule(users: &[&str], database: &str, address: &str, tls: bool, method: HbaMethod) -> HbaRule {
        let names =
            |names: &[&str]| names.iter().filter(|n| !n.is_empty()).map(|n| (*n).to_owned()).collect();
        HbaRule {
            users: names(users),
            databases: names(&[database]),
            address: Cidr::parse(address),
            tls,
            method,
        }
    }

    fn rules() -> [HbaRule; 5] {
        use HbaMethod::{Auto, Cert, Reject};
        [
            rule(&["root", "admin"], "", "", false, Reject),
            rule(&["app"], "shop", "10.0.0.0/8", true, Cert),
            rule(&[], "", "10.1.0.0/16", false, Reject),
            rule(&[], "", "10.0.0.0/8", false, Auto),
            rule(&["six"], "", "fd00::/8", false, Auto),
        ]
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        use HbaMethod::{Auto, Cert};
        let rules = rules();
        for (user, database, address, tls, answer) in [
            (
                "admin",
                "shop",
                "10.0.0.1",
                true,
                Err(
                    "[[hba]] rejects connection for host \"10.0.0.1\", user \"admin\", database \"shop\", SSL encryption",
                ),
            ),
            ("app", "shop", "10.200.0.1", true, Ok(Cert)),
            ("app", "shop", "10.200.0.1", false, Ok(Auto)),
            ("app", "other", "10.200.0.1", true, Ok(Auto)),
            ("app", "shop", "10.1.2.3", true, Ok(Cert)),
            (
                "any",
                "shop",
                "10.1.2.3",
                true,
                Err(
                    "[[hba]] rejects connection for host \"10.1.2.3\", user \"any\", database \"shop\", SSL encryption",
                ),
            ),
            ("any", "shop", "::ffff:10.2.2.3", false, Ok(Auto)),
            ("six", "x", "fd12::1", false, Ok(Auto)),
            (
                "six",
                "x",
                "fe80::1",
                false,
                Err("no [[hba]] entry for host \"fe80::1\", user \"six\", database \"x\", no encryption"),
            ),
            (
                "any",
                "x",
                "127.0.0.1",
                false,
                Err("no [[hba]] entry for host \"127.0.0.1\", user \"any\", database \"x\", no encryption"),
            ),
        ] {
            let address = address.parse().unwrap();
            let who = Applicant {
                user: user.as_bytes(),
                database: database.as_bytes(),
                replication: false,
                address,
                tls,
            };
            let got = admit(&rules, who).map_err(|error| error.message.clone());
            assert_eq!(got, answer.map_err(str::to_owned), "{user} {database} {address}");
        }
    }

    #[test]
    fn a_rule_for_all_databases_is_not_one_for_replication() {
        use HbaMethod::Auto;
        let who = Applicant {
            user: b"x",
            database: b"y",
            replication: false,
            address: [1, 2, 3, 4].into(),
            tls: false,
        };
        assert!(matches!(admit(&[], who), Ok(Auto)));
        let walker = Applicant { replication: true, ..who };
        assert!(matches!(admit(&[], walker), Ok(Auto)));
        let everything = rule(&[], "", "", false, Auto);
        assert!(admit(&[everything], walker).is_err());
        assert!(matches!(admit(&[rule(&[], "replication", "", false, Auto)], walker), Ok(Auto)));
    }

    #[test]
    fn networks() {
        for (network, address, inside) in [
            ("0.0.0.0/0", "255.1.1.1", true),
            ("::/0", "255.1.1.1", false),
            ("192.168.1.7", "192.168.1.7", true),
            ("192.168.1.7", "192.168.1.6", false),
            ("192.168.1.0/31", "192.168.1.1", true),
            ("192.168.1.0/31", "192.168.1.2", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
        ] {
            let network = Cidr::parse(network).unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), inside, "{network} {address}");
        }
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "host",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "::ffff:10.0.0.0/104",
        ] {
            assert_eq!(Cidr::parse(wrong), None, "{wrong}");
        }
    }
}
