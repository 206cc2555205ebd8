//! Small files that are damaged: written again from what the process knows.
//!
//! Spec: `protocol/spec/home.md`, "Files".

use std::io;

use super::super::{
    ACCESS_FILE, BOOK_FILE, HOLDINGS_FILE, Node, PORTS_FILE, Ports, RECORDS_FILE, Ready,
    TICKETS_FILE, held,
};
use super::log::LogHealed;
use crate::config::{Home, HomeError, KEY_FILE, SETTINGS_FILE, fresh_rng};
use crate::verify::{self, Finding, PLACE_FILE, ROUND_FILE};

impl Node {
    /// Mends what was found, if this process can, and says in the finding how. `log` is what has become of the log, once that is known.
    pub(in crate::run) async fn mend(&self, found: &mut Finding, log: &mut Option<LogHealed>) {
        if found.mended.is_some() {
            return;
        }
        if found.file == verify::log_file() {
            if log.is_none() {
                *log = Some(self.heal_log().await);
            }
            match log {
                Some(LogHealed::Mended(how)) => found.mended = Some(how.clone()),
                Some(LogHealed::Left(why)) => found.what.push_str(&format!("; {why}")),
                None => {}
            }
            return;
        }
        match self.mend_file(&found.file).await {
            Some(Ok(how)) => found.mended = Some(how.to_owned()),
            Some(Err(error)) => found.what.push_str(&format!(
                "; it could not be written again: {}",
                verify::told(&error)
            )),
            None => {}
        }
    }

    /// Writes a small file again; `None` if it is none, or this process does not know what was in it.
    async fn mend_file(&self, file: &str) -> Option<Result<&'static str, HomeError>> {
        match file {
            KEY_FILE => {
                let identity = self.identity.clone();
                let write = move |home: &Home| home.rewrite_identity(&identity);
                Some(self.rewrite(write, "written again from memory").await)
            }
            SETTINGS_FILE => {
                let settings = self.settings;
                let how = if self.healer.settings_lost {
                    "the defaults are in force and were written in its place; set again what is to differ, say with `kith up --quota`"
                } else {
                    "written again from memory"
                };
                let write = move |home: &Home| home.write_settings(settings);
                Some(self.rewrite(write, how).await)
            }
            PORTS_FILE => {
                let inside = self.asker.look(|device| device.own_addrs().to_vec()).await;
                let ready = Ready {
                    device: self.identity.keys.id(),
                    addrs: held(&self.door).clone(),
                    inside: inside.unwrap_or_default(),
                    public: held(&self.outside)
                        .as_ref()
                        .map(|outside| outside.addrs())
                        .unwrap_or_default(),
                };
                if !self.asker.is_online() || ready.inside.is_empty() {
                    return Some(
                        self.forget(PORTS_FILE, "removed; the next start takes free ports")
                            .await,
                    );
                }
                let write = move |home: &Home| {
                    Ports::of(&ready, (0, 0)).write(home);
                    Ok(())
                };
                Some(self.rewrite(write, "written again from memory").await)
            }
            ACCESS_FILE => {
                let entries = self
                    .asker
                    .look(kith_core::device::Device::access_from_genesis);
                let written = self.write_access(entries.await?).await;
                Some(written.map(|()| "written again from memory"))
            }
            BOOK_FILE => {
                self.asker.keep_book().await?;
                Some(Ok("written again with the addresses that are known now"))
            }
            TICKETS_FILE if self.asker.is_online() => {
                // With the turn to write: a later book must not be replaced by this one.
                let _turn = self.saving.lock().await;
                let book = self.keeper.book().await?;
                let keys = self.identity.keys.clone();
                let write = move |home: &Home| {
                    home.write_sealed(TICKETS_FILE, &keys, &mut fresh_rng(), book.expose())
                };
                Some(
                    self.rewrite(write, "written again with the tickets that are open now")
                        .await,
                )
            }
            TICKETS_FILE => Some(self.forget(TICKETS_FILE, "removed; open tickets end").await),
            HOLDINGS_FILE => Some(
                self.forget(HOLDINGS_FILE, "removed; what others told they tell again")
                    .await,
            ),
            RECORDS_FILE => Some(
                self.forget(RECORDS_FILE, "removed; what others told they tell again")
                    .await,
            ),
            ROUND_FILE => Some(
                self.forget(
                    ROUND_FILE,
                    "removed; the next place in the round is written in its stead",
                )
                .await,
            ),
            PLACE_FILE => Some(
                self.forget(
                    PLACE_FILE,
                    "removed; the check that it belongs to begins anew",
                )
                .await,
            ),
            _ => None,
        }
    }

    async fn forget(
        &self,
        file: &'static str,
        how: &'static str,
    ) -> Result<&'static str, HomeError> {
        let remove = move |home: &Home| {
            let path = home.path().join(file);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(HomeError::Io { path, source })
                }
                _ => Ok(()),
            }
        };
        self.rewrite(remove, how).await
    }

    async fn rewrite(
        &self,
        write: impl FnOnce(&Home) -> Result<(), HomeError> + Send + 'static,
        how: &'static str,
    ) -> Result<&'static str, HomeError> {
        let home = self.home.clone();
        let path = home.path().to_owned();
        let written = tokio::task::spawn_blocking(move || write(&home)).await;
        written
            .unwrap_or_else(|error| {
                Err(HomeError::Io {
                    path,
                    source: io::Error::other(error),
                })
            })
            .map(|()| how)
    }
}
