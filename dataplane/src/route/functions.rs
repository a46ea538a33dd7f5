//! Which functions may run on a standby: the built-in list of PostgreSQL, and what is known of the user's own.
//! Never allocates; the list itself is generated (see `functions/table.rs`).

mod table;
mod users;

pub use users::UserFunctions;

/// What is known about functions outside PostgreSQL's own list. Names come without schema; an unquoted one in lower case.
pub trait KnownFunctions {
    /// Another number for other contents, and the same for equal ones; 0: nothing is known.
    fn id(&self) -> u64 {
        0
    }

    /// Every function of this name is known to be immutable or stable.
    fn is_safe(&self, name: &[u8]) -> bool;

    /// Some function of this name is known to be volatile: it beats the built-in list, for an overload of the user's.
    fn is_volatile(&self, name: &[u8]) -> bool {
        let _ = name;
        false
    }
}

/// Nothing is known beyond the built-in list.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFunctions;

impl KnownFunctions for NoFunctions {
    fn is_safe(&self, _: &[u8]) -> bool {
        false
    }
}

impl<F: Fn(&[u8]) -> bool> KnownFunctions for F {
    fn is_safe(&self, name: &[u8]) -> bool {
        self(name)
    }
}

/// The first bytes of every name as one number in the same order, so that a search compares numbers.
static SAFE_KEYS: [u128; table::SAFE.len()] = keys(table::SAFE);
static KEYWORD_KEYS: [u128; table::KEYWORDS.len()] = keys(table::KEYWORDS);

/// Bytes of a name in its key.
const KEY: usize = 16;

#[allow(clippy::indexing_slicing)] // constant evaluation: out of range does not compile
const fn keys<const N: usize>(names: &[&str]) -> [u128; N] {
    let mut keys = [0; N];
    let mut i = 0;
    while i < N {
        let name = names[i].as_bytes();
        let mut key = [0; KEY];
        let mut n = 0;
        while n < KEY && n < name.len() {
            key[n] = name[n];
            n += 1;
        }
        keys[i] = u128::from_be_bytes(key);
        i += 1;
    }
    keys
}

/// Whether the built-in list has this name, which is in lower case already.
pub(crate) fn is_builtin_safe(name: &[u8]) -> bool {
    holds(&SAFE_KEYS, table::SAFE, name)
}

/// Whether PostgreSQL has this keyword, which is in lower case already.
pub(crate) fn is_any_keyword(word: &[u8]) -> bool {
    holds(&KEYWORD_KEYS, table::KEYWORDS, word)
}

fn holds(keys: &[u128], names: &[&str], name: &[u8]) -> bool {
    let mut key = [0; KEY];
    key.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    let key = u128::from_be_bytes(key);
    let first = keys.partition_point(|k| *k < key);
    let same = keys.get(first..).unwrap_or_default().iter().take_while(|k| **k == key);
    let names = names.get(first..).unwrap_or_default();
    same.zip(names).any(|(_, candidate)| candidate.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_lower_case() {
        for table in [table::SAFE, table::KEYWORDS] {
            assert!(table.windows(2).all(|w| w[0] < w[1]));
            assert!(table.iter().all(|n| n.bytes().all(|b| !b.is_ascii_uppercase()) && n.len() < 64));
        }
    }

    #[test]
    fn every_name_is_found_and_nothing_near_it() {
        for name in table::SAFE {
            assert!(is_builtin_safe(name.as_bytes()), "{name}");
            let near = format!("{name}\0");
            assert!(!is_builtin_safe(near.as_bytes()), "{name}");
        }
        assert!(table::KEYWORDS.iter().all(|w| is_any_keyword(w.as_bytes())));
        assert!(!is_builtin_safe(b"") && !is_any_keyword(b"zzz") && !is_any_keyword(b"\xff"));
    }

    #[test]
    fn nothing_with_a_side_effect_is_safe() {
        let bad = "nextval setval currval lastval set_config setseed txid_current pg_current_xact_id pg_notify pg_export_snapshot \
            lo_get lo_put lo_create lo_import loread dblink dblink_exec pg_advisory_lock pg_advisory_xact_lock \
            pg_try_advisory_lock pg_advisory_unlock pg_current_wal_lsn pg_walfile_name query_to_xml table_to_xml schema_to_xml \
            database_to_xml cursor_to_xml ts_stat ts_rewrite pg_terminate_backend pg_cancel_backend pg_reload_conf pg_switch_wal \
            pg_create_restore_point pg_read_file pg_backend_pid pg_stat_reset pg_promote pg_logical_emit_message \
            pg_drop_replication_slot pg_listening_channels pg_cursor pg_prepared_statement brin_summarize_new_values";
        for name in bad.split_whitespace() {
            assert!(!is_builtin_safe(name.as_bytes()), "{name}");
        }
        let good = "count sum lower now pg_get_expr pg_table_is_visible format_type pg_is_in_recovery random gen_random_uuid \
            generate_series unnest row_number current_setting array_agg version has_table_privilege pg_get_userbyid to_char";
        for name in good.split_whitespace() {
            assert!(is_builtin_safe(name.as_bytes()), "{name}");
        }
    }
}
