//! The checks. Each is an ordinary function; its name is what a report shows.

mod compose;
mod export;
mod fleets;
mod keep;
mod origins;
mod sites;
mod uploads;

use std::fmt::Debug;

use futures_util::future::BoxFuture;
use stead_core::engine::{Capabilities, EngineError};
use stead_core::error::{Code, UserError};

use super::stage::{Stage, Verdict};

/// One check.
pub(super) struct Check {
    /// A sentence that holds of every engine that can do it.
    pub(super) name: &'static str,
    /// Which capability it needs that the engine does not have.
    pub(super) lacks: fn(&Capabilities) -> Option<&'static str>,
    pub(super) run: for<'a> fn(&'a mut Stage) -> BoxFuture<'a, Verdict>,
}

macro_rules! checks {
    ($($module:ident { $($name:ident $(if $capability:ident)?),* $(,)? })*) => {
        /// Every check.
        pub(super) const ALL: &[Check] = &[$($(Check {
            name: stringify!($name),
            lacks: |_can| {
                $(if !_can.$capability { return Some(stringify!($capability)); })?
                None
            },
            run: |stage| Box::pin($module::$name(stage)),
        }),*),*];
    };
}

checks! {
    fleets {
        an_unknown_app_is_empty,
        hints_arrive,
        applying_again_changes_nothing,
        a_stale_generation_is_refused,
        instances_come_and_go_with_the_scale,
        in_place_keeps_sandbox_and_address,
        recreate_makes_another_sandbox,
        a_restart_of_one_touches_one,
        an_intended_restart_is_no_crash,
        an_undo_brings_the_old_revision_back,
        one_of_two_stays_in_service,
        a_drain_ends_before_a_stop,
        a_crash_restarts_with_growing_back_off,
        exit_codes_are_reported,
        what_is_never_ready_gets_no_requests,
        a_restarted_engine_finds_everything,
        a_restart_amid_an_upgrade_still_drains,
        a_restarted_engine_goes_on_unasked,
        what_is_forgotten_is_gone,
        a_handover_leaves_no_gap,
        the_old_one_serves_until_the_new_one_is_ready,
        an_exclusive_volume_never_has_two_writers,
        a_thaw_brings_the_same_container_back,
        an_update_keeps_the_container,
        a_sidecar_changes_alone,
    }
    uploads {
        an_upload_goes_on_where_it_broke_off,
        bytes_for_another_place_are_refused,
        what_has_another_digest_is_not_kept,
        what_is_longer_than_announced_is_not_kept,
        an_upload_that_is_here_is_not_read_again,
        two_senders_of_one_upload_do_not_mix,
    }
    compose {
        compose_names_what_is_missing,
        a_layer_of_another_image_needs_no_upload,
        the_same_request_makes_the_same_image,
        the_same_request_may_be_made_at_once,
        a_dry_run_changes_nothing,
        a_name_is_of_the_image_that_got_it_last,
        how_a_layer_is_sent_makes_no_difference,
        a_layer_that_is_not_what_was_sent_is_refused,
        a_base_makes_another_image,
        a_base_that_is_not_here_is_refused,
        a_composed_image_does_without_the_image_of_its_base,
        a_composed_image_outlives_the_engine_and_runs,
    }
    keep {
        a_prune_leaves_what_is_needed,
        a_prune_leaves_what_runs,
        a_prune_of_what_is_old_leaves_the_rest,
        a_needed_image_is_removed_once_it_is_released,
        an_image_may_be_needed_before_it_comes,
        an_image_that_a_fleet_may_go_back_to_is_not_removed,
    }
    sites {
        a_site_is_found_once_its_image_is_here,
        a_site_that_lacks_a_page_is_refused,
    }
    export {
        what_is_exported_comes_back_the_same if export,
        export_is_refused_by_who_cannot_do_it,
    }
    origins {
        a_wrong_login_is_denied,
        a_registry_without_logins_says_so,
        a_registry_that_is_away_is_no_wrong_login,
        an_installed_runtime_makes_the_same_base_again,
        a_runtime_that_is_not_installed_makes_no_base,
    }
}

fn equal<T: PartialEq + Debug>(what: &str, found: &T, wanted: &T) -> Verdict {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?} instead of {wanted:?}")) }
}

fn different<T: PartialEq + Debug>(what: &str, found: &T, other: &T) -> Verdict {
    if found != other { Ok(()) } else { Err(format!("{what}: still {found:?}")) }
}

/// What came of a call that must be refused with this code.
fn refused<T: Debug>(
    what: &str,
    answer: Result<T, EngineError>,
    code: Code,
) -> Result<UserError, String> {
    match answer {
        Err(EngineError::User(error)) if error.code == code => Ok(error),
        other => Err(format!("{what} was not refused with {code}: {other:?}")),
    }
}
