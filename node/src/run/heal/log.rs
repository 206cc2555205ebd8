//! A damaged log: its entries come again, then it is written anew without the damage.
//!
//! Spec: `protocol/spec/log.md`, "Healing".

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kith_object::id::EntryId;

use super::super::Node;
use crate::verify;

/// How long entries are waited for while a device is connected, and how often it is looked.
const ENTRIES_WAIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);

/// What became of a damaged log.
#[derive(Clone, Debug)]
pub(in crate::run) enum LogHealed {
    /// Nothing is damaged in it any more; how that came.
    Mended(String),
    /// What stays damaged, and why.
    Left(String),
}

/// How the entries of damaged places stand.
struct Standing {
    /// Entries that nobody has given again yet.
    lacking: usize,
    /// Entries that nobody needs.
    needless: Vec<EntryId>,
    /// Whether another device has said that it knows what this one knows.
    agreed: bool,
    /// Devices connected.
    peers: usize,
}

impl Node {
    /// Has the entries of damaged places written again, from memory or by other devices, and then the log without the damage. The caller has its turn.
    pub(super) async fn heal_log_now(&self) -> LogHealed {
        let home = self.home.clone();
        let looked = tokio::task::spawn_blocking(move || verify::damaged_places(&home)).await;
        let places = match looked {
            Ok(Ok(places)) => places,
            Ok(Err(error)) => return LogHealed::Left(format!("it cannot be read: {error}")),
            Err(error) => return LogHealed::Left(error.to_string()),
        };
        if places.is_empty() {
            self.log_is_sound();
            return LogHealed::Mended("it is sound now that it is looked at again".to_owned());
        }
        let outcome = self.heal_places(places).await;
        outcome.unwrap_or_else(|| LogHealed::Left("the device is ending".to_owned()))
    }

    fn log_is_sound(&self) {
        self.healer.log_damaged.store(false, Ordering::Relaxed);
        self.healer.log_unknown.store(false, Ordering::Relaxed);
    }

    /// `None` if the device is ending.
    async fn heal_places(&self, places: Vec<Range<u64>>) -> Option<LogHealed> {
        self.healer.log_damaged.store(true, Ordering::Relaxed);
        let unreadable = self.asker.judge_log(places.clone()).await?;
        let until = tokio::time::Instant::now() + ENTRIES_WAIT;
        loop {
            let standing = self.standing(unreadable.clone()).await?;
            // What was damaged before this process saw it is known by nobody here: it is all back once another device knows no more than this one.
            let unknown = self.healer.log_unknown.load(Ordering::Relaxed);
            if standing.lacking == 0 && (standing.agreed || !unknown) {
                let count = unreadable.len() - standing.needless.len();
                match self.write_anew(&places, unknown, standing.needless).await? {
                    Ok(true) => {
                        self.log_is_sound();
                        let kept = if unknown {
                            "; what stood there before is in logs/entries.log.bad"
                        } else {
                            ""
                        };
                        return Some(LogHealed::Mended(format!(
                            "{count} entries were written again, and the log anew without the damage{kept}"
                        )));
                    }
                    // One more was found that cannot be read: it is on its way.
                    Ok(false) => {}
                    Err(why) => return Some(LogHealed::Left(why)),
                }
            } else if standing.peers == 0 || tokio::time::Instant::now() >= until {
                let what = if standing.lacking > 0 {
                    format!(
                        "{} entries are lost unless another device has them",
                        standing.lacking
                    )
                } else {
                    "what stood there is lost unless another device has it".to_owned()
                };
                return Some(LogHealed::Left(format!(
                    "{what}; it comes back when one is connected that does"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn standing(&self, unreadable: Vec<EntryId>) -> Option<Standing> {
        let look = self.asker.look(move |device| {
            let needless = unreadable
                .into_iter()
                .filter(|id| device.replica().stamp(id).is_none());
            Standing {
                lacking: device.unreadable().count(),
                needless: needless.collect(),
                agreed: device.has_agreed(),
                peers: device.peers().len(),
            }
        });
        look.await
    }

    /// Writes the log anew; false if an entry turned out to be unreadable. `None` if the device is ending.
    async fn write_anew(
        &self,
        places: &[Range<u64>],
        unknown: bool,
        needless: Vec<EntryId>,
    ) -> Option<Result<bool, String>> {
        if unknown {
            let (home, places) = (self.home.clone(), places.to_vec());
            let kept =
                tokio::task::spawn_blocking(move || verify::keep_damaged(&home, &places)).await;
            if let Ok(Err(error)) = kept {
                tracing::warn!(%error, "what stood in damaged places of the log is not kept");
            }
        }
        let written = self.asker.write_log_anew(needless).await?;
        if matches!(written, Ok(true)) {
            tracing::info!("the log was written anew without its damage");
        }
        Some(
            written
                .map_err(|error| format!("it could not be written anew: {}", verify::told(&error))),
        )
    }
}
