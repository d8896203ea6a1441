//! Checks of uploads: bytes that come in pieces, named by their digest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, stream};
use stead_core::api::package::UploadView;
use stead_core::engine::EngineError;
use stead_core::error::Code;
use tokio::sync::Notify;

use super::super::parcel::{broken_off, part, pieces};
use super::super::stage::{Stage, Verdict};
use super::{equal, refused};

/// Bytes of which no two pieces are the same.
fn content() -> Vec<u8> {
    (0..25_000u32).flat_map(u32::to_le_bytes).collect()
}

fn here(bytes: &[u8]) -> UploadView {
    UploadView { offset: bytes.len() as u64, complete: false }
}

fn all_of(bytes: &[u8]) -> UploadView {
    UploadView { complete: true, ..here(bytes) }
}

pub(super) async fn an_upload_goes_on_where_it_broke_off(stage: &mut Stage) -> Verdict {
    let all = content();
    equal("what nobody sent", &stage.uploaded(&all).await?, &here(b""))?;
    let answer = stage.engine().upload(part(&all, 0), broken_off(&all[..40_000])).await;
    if let Ok(view) = answer {
        return Err(format!("an upload that broke off was answered with {view:?}"));
    }
    equal("what is here of it", &stage.uploaded(&all).await?, &here(&all[..40_000]))?;
    stage.restart_engine().await;
    equal("what a restart left", &stage.uploaded(&all).await?, &here(&all[..40_000]))?;
    let more = stage.send(&all, 40_000, &all[40_000..90_000]).await?;
    equal("what is here of it then", &more, &here(&all[..90_000]))?;
    equal("the upload", &stage.send(&all, 90_000, &all[90_000..]).await?, &all_of(&all))?;
    equal("the upload later", &stage.uploaded(&all).await?, &all_of(&all))
}

pub(super) async fn bytes_for_another_place_are_refused(stage: &mut Stage) -> Verdict {
    let all = content();
    stage.send(&all, 0, &all[..40_000]).await?;
    for wrong in [0, 39_000, 41_000] {
        let answer = stage.engine().upload(part(&all, wrong), pieces(&all[wrong..])).await;
        refused(&format!("an upload at {wrong}"), answer, Code::Conflict)?;
    }
    equal("what is here of it", &stage.uploaded(&all).await?, &here(&all[..40_000]))
}

pub(super) async fn what_has_another_digest_is_not_kept(stage: &mut Stage) -> Verdict {
    let all = content();
    let mut wrong = all.clone();
    wrong[50_000] ^= 1;
    let answer = stage.engine().upload(part(&all, 0), pieces(&wrong)).await;
    refused("another content", answer, Code::ImageCorrupt)?;
    equal("what is kept of it", &stage.uploaded(&all).await?, &here(b""))?;
    equal("the right one", &stage.send(&all, 0, &all).await?, &all_of(&all))
}

pub(super) async fn what_is_longer_than_announced_is_not_kept(stage: &mut Stage) -> Verdict {
    let all = content();
    let long = [all.as_slice(), b"and more"].concat();
    let answer = stage.engine().upload(part(&all, 0), pieces(&long)).await;
    refused("more than was announced", answer, Code::ImageCorrupt)?;
    equal("what is kept of it", &stage.uploaded(&all).await?, &here(b""))
}

pub(super) async fn an_upload_that_is_here_is_not_read_again(stage: &mut Stage) -> Verdict {
    let all = content();
    stage.send(&all, 0, &all).await?;
    let read = Arc::new(AtomicBool::new(false));
    let bytes = {
        let read = Arc::clone(&read);
        pieces(&all).inspect(move |_| read.store(true, Ordering::Relaxed)).boxed()
    };
    let again = stage.engine().upload(part(&all, 0), bytes).await;
    let again = again.map_err(|error| format!("the same upload again fails: {error}"))?;
    equal("the same upload again", &again, &all_of(&all))?;
    equal("whether its bytes were read", &read.load(Ordering::Relaxed), &false)
}

pub(super) async fn two_senders_of_one_upload_do_not_mix(stage: &mut Stage) -> Verdict {
    let all = content();
    let (engine, other) = (stage.engine(), stage.engine());
    let on = Arc::new(Notify::new());
    let rest = {
        let (on, rest) = (Arc::clone(&on), pieces(&all[40_000..]));
        stream::once(async move {
            on.notified().await;
            rest
        })
        .flatten()
    };
    let slow = pieces(&all[..40_000]).chain(rest).boxed();
    let first = engine.upload(part(&all, 0), slow);
    let second = async {
        stage.until_uploaded(&all, 40_000).await?;
        let answer = other.upload(part(&all, 0), pieces(&all));
        // The first goes on while the second waits, or once it was refused.
        let (answer, ()) = tokio::join!(answer, async { on.notify_one() });
        Ok::<_, String>(answer)
    };
    let (first, second) = tokio::join!(first, second);
    for answer in [first, second?] {
        match answer {
            Ok(view) => equal("what a sender is told", &view, &all_of(&all))?,
            Err(EngineError::User(error)) if error.code == Code::Conflict => {}
            Err(error) => return Err(format!("a sender is told: {error}")),
        }
    }
    equal("the upload", &stage.uploaded(&all).await?, &all_of(&all))
}
