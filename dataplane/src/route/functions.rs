//! Which functions may run on a standby: the built-in list of PostgreSQL, and what is known of the user's own.
//! Never allocates; the list itself is generated (see `functions/table.rs`).

mod table;

/// What is known about functions outside PostgreSQL's own list. Names come without schema; an unquoted one in lower case.
pub trait KnownFunctions {
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

/// Whether the built-in list has this name, which is in lower case already.
pub(super) fn is_builtin_safe(name: &[u8]) -> bool {
    holds(table::SAFE, name)
}

/// Whether PostgreSQL has this keyword, which is in lower case already.
pub(super) fn is_any_keyword(word: &[u8]) -> bool {
    holds(table::KEYWORDS, word)
}

fn holds(sorted: &[&str], name: &[u8]) -> bool {
    sorted.binary_search_by(|probe| probe.as_bytes().cmp(name)).is_ok()
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
