//! The way in by the 24 words, from the newcomer's side.
//!
//! Spec: `protocol/spec/pairing.md`, "By words".

use std::collections::VecDeque;

use bytes::Bytes;
use kith_object::id::SpaceId;
use kith_object::key::{Rng, SignKey, verify};
use kith_object::time::Time;

use super::handshake::{Peers, Transcript};
use super::message::{
    Declined, Gather, Guide, Hello, REFUSED, encode_admission, fixed, kind, pieces, read_fixed,
};
use super::{ANSWER_MAX, Mesh, PROOF_MAX};
use crate::wire::{DOOR_FRAME_BYTES_MAX, DOOR_FRAME_BYTES_MAX_PROVED, Reader};

/// Domain of the root's signature.
const ROOT_PROOF_DOMAIN: &str = "kith words proof 1";
/// The mesh id of one who knows only the words: whatever mesh they belong to.
const ANY_MESH: SpaceId = SpaceId([0; 32]);

/// After both nonces.
pub(super) fn words_transcript(peers: &Peers, hello: &[u8], nonce: &[u8]) -> Transcript {
    Transcript::start(peers).absorb(&[hello]).absorb(&[nonce])
}

/// What the root signs: both peer ids, both nonces, the mesh id.
fn root_signed(transcript: &Transcript, mesh: &SpaceId) -> [u8; 32] {
    transcript.absorb(&[&[kind::ROOT_PROOF], &mesh.0]).0
}

/// Whether the message proves the words of this mesh.
pub(super) fn is_root_proof(mesh: &Mesh, transcript: &Transcript, message: &[u8]) -> bool {
    let mut reader = Reader::new(message);
    let mut read = || {
        if reader.u8()? != kind::ROOT_PROOF {
            return Err(crate::wire::Malformed("another message was due"));
        }
        Ok((SpaceId(reader.array()?), reader.array()?))
    };
    let Ok((claimed, signature)) = read() else {
        return false;
    };
    // The signature is checked in any case, so that time does not tell whose door this is.
    let signed = root_signed(transcript, &claimed);
    let proved = verify(&mesh.root, ROOT_PROOF_DOMAIN, &signed, &signature);
    proved && reader.finish().is_ok() && (claimed == ANY_MESH || claimed == mesh.id)
}

/// What happens to the newcomer.
#[derive(Debug)]
pub enum Input {
    /// A stream to a door is open.
    Opened(Peers),
    /// The stream is gone, or could not be opened.
    Closed,
    /// A frame came, whole and without its length.
    Message(Bytes),
    /// Answers [`Effect::Judge`]: the entries by which the newcomer admits itself. None: it is in already and only wanted to know more.
    Admission(Vec<Bytes>),
    /// Answers [`Effect::Judge`]: the entries do not come from these words.
    Rejected,
    /// Time has come to [`WordsJoiner::next_wakeup`].
    Wake,
}

/// What the newcomer wants done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame.
    Send(Bytes),
    /// Judge the entries from the root key on, open the epochs with the recovery key, then say [`Input::Admission`] or [`Input::Rejected`].
    Judge(Box<Guide>),
    /// Close the stream once all is sent.
    Close,
    /// It is over: the door has the admission on disk, if there was one.
    Finished,
    /// It is over: this door did not help. Another may.
    Fail(WordsJoinError),
}

/// Why a door did not let the words in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WordsJoinError {
    /// No connection, no answer, or it broke off.
    #[error("the door does not answer")]
    Unreachable,
    /// The one answer to all that is wrong.
    #[error("the door does not know these words")]
    Refused,
    /// It could not do its part.
    #[error("the device behind the door could not do its part")]
    Failed,
    /// Bytes that are no message.
    #[error("the door sends what it should not: {0}")]
    Malformed(&'static str),
    /// The owner's judgement.
    #[error("the door's entries do not come from these words")]
    NotTrusted,
    /// The owner's own entries do not fit a message.
    #[error("the admission is larger than a door takes")]
    TooLarge,
}

/// A new device that joins by the words, at one door. Dialling, and trying others, is the owner's.
///
/// Feed [`Input`]s, drain [`Effect`]s, return at [`WordsJoiner::next_wakeup`].
///
/// Spec: `protocol/spec/pairing.md`, "By words".
pub struct WordsJoiner {
    root: SignKey,
    mesh: SpaceId,
    rng: Rng,
    step: Step,
    /// When the step ends; the owner's own work is not hurried.
    deadline: Option<Time>,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
enum Step {
    /// Nothing was said.
    Silent,
    /// The nonce is sent.
    Asked { peers: Peers, hello: Vec<u8> },
    /// The proof is sent.
    Proved { guide: Gather },
    /// The owner judges.
    Judging { connected: bool },
    /// The admission is sent.
    Admitted,
    /// It is over.
    Over,
}

impl WordsJoiner {
    /// Begins. Without a mesh id, whatever mesh the words belong to.
    pub fn new(now: Time, root: SignKey, mesh: Option<SpaceId>, rng: Rng) -> Self {
        Self {
            root,
            mesh: mesh.unwrap_or(ANY_MESH),
            rng,
            step: Step::Silent,
            deadline: Some(now + ANSWER_MAX),
            effects: VecDeque::new(),
        }
    }

    /// The largest frame to accept.
    pub fn message_bytes_max(&self) -> usize {
        match self.step {
            Step::Proved { .. } => DOOR_FRAME_BYTES_MAX_PROVED,
            _ => DOOR_FRAME_BYTES_MAX,
        }
    }

    /// Whether [`Effect::Finished`] or [`Effect::Fail`] was said.
    pub fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// The next wish, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come with [`Input::Wake`] at the latest.
    pub fn next_wakeup(&self) -> Option<Time> {
        self.deadline.filter(|_| !self.is_over())
    }

    /// Advances the machine; `now` never goes backwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        if self.is_over() {
            return;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.fail(WordsJoinError::Unreachable);
            return;
        }
        let step = std::mem::replace(&mut self.step, Step::Over);
        let next = match input {
            Input::Opened(peers) => self.opened(now, step, peers),
            Input::Closed => match step {
                Step::Judging { .. } => Ok(Step::Judging { connected: false }),
                _ => Err(WordsJoinError::Unreachable),
            },
            Input::Message(message) => self.message(now, step, &message),
            Input::Admission(entries) => self.admission(now, step, &entries),
            Input::Rejected => match step {
                Step::Judging { .. } => Err(WordsJoinError::NotTrusted),
                other => Ok(other),
            },
            Input::Wake => Ok(step),
        };
        match next {
            Ok(step) => self.step = step,
            Err(error) => self.fail(error),
        }
    }

    fn opened(&mut self, now: Time, step: Step, peers: Peers) -> Result<Step, WordsJoinError> {
        if !matches!(step, Step::Silent) {
            return Ok(step);
        }
        if !peers.is_valid() {
            return Err(WordsJoinError::Malformed("a peer id of no proper length"));
        }
        let nonce = self.rng.bytes();
        let hello = Hello::Words { nonce }.encode();
        self.effects
            .push_back(Effect::Send(Bytes::copy_from_slice(&hello)));
        self.deadline = Some(now + PROOF_MAX);
        Ok(Step::Asked { peers, hello })
    }

    fn message(&mut self, now: Time, step: Step, message: &Bytes) -> Result<Step, WordsJoinError> {
        let max = match step {
            Step::Proved { .. } => DOOR_FRAME_BYTES_MAX_PROVED,
            _ => DOOR_FRAME_BYTES_MAX,
        };
        if message.len() > max {
            return Err(WordsJoinError::Malformed("a message too long"));
        }
        let due = matches!(
            step,
            Step::Asked { .. } | Step::Proved { .. } | Step::Admitted
        );
        if due && *message == REFUSED {
            return Err(WordsJoinError::Refused);
        }
        if due && Declined::decode(message).is_ok() {
            return Err(WordsJoinError::Failed);
        }
        let malformed = |error: crate::wire::Malformed| WordsJoinError::Malformed(error.0);
        match step {
            Step::Asked { peers, hello } => {
                // Whatever the nonce, the signature holds for this connection alone.
                read_fixed::<32>(kind::NONCE, message).map_err(malformed)?;
                let transcript = words_transcript(&peers, &hello, message);
                let signature = self
                    .root
                    .sign(ROOT_PROOF_DOMAIN, &root_signed(&transcript, &self.mesh));
                let mut proof = fixed(kind::ROOT_PROOF, &self.mesh.0);
                proof.extend_from_slice(&signature);
                self.effects.push_back(Effect::Send(proof.into()));
                self.deadline = Some(now + ANSWER_MAX);
                Ok(Step::Proved {
                    guide: Gather::guide(),
                })
            }
            Step::Proved { mut guide } => match guide.push(message).map_err(malformed)? {
                None => {
                    self.deadline = Some(now + ANSWER_MAX);
                    Ok(Step::Proved { guide })
                }
                Some(content) => {
                    let guide = Guide::decode(&content).map_err(malformed)?;
                    self.effects.push_back(Effect::Judge(Box::new(guide)));
                    self.deadline = None;
                    Ok(Step::Judging { connected: true })
                }
            },
            Step::Admitted => {
                if message.as_ref() != [kind::STORED] {
                    return Err(WordsJoinError::Malformed("another message was due"));
                }
                self.finish();
                Ok(Step::Over)
            }
            other => Ok(other),
        }
    }

    fn admission(
        &mut self,
        now: Time,
        step: Step,
        entries: &[Bytes],
    ) -> Result<Step, WordsJoinError> {
        let Step::Judging { connected } = step else {
            return Ok(step);
        };
        if entries.is_empty() {
            self.finish();
            return Ok(Step::Over);
        }
        if !connected {
            return Err(WordsJoinError::Unreachable);
        }
        let content = encode_admission(entries).map_err(|_| WordsJoinError::TooLarge)?;
        for message in pieces(kind::ADMISSION, &content) {
            self.effects.push_back(Effect::Send(message));
        }
        self.deadline = Some(now + ANSWER_MAX);
        Ok(Step::Admitted)
    }

    fn finish(&mut self) {
        self.effects.push_back(Effect::Close);
        self.effects.push_back(Effect::Finished);
    }

    fn fail(&mut self, error: WordsJoinError) {
        self.step = Step::Over;
        self.effects.push_back(Effect::Close);
        self.effects.push_back(Effect::Fail(error));
    }

    /// Panics if the machine is not as it should be.
    pub fn check_invariants(&self) {
        let judging = matches!(self.step, Step::Judging { .. });
        assert!(
            self.is_over() || judging || self.deadline.is_some(),
            "nothing will ever happen"
        );
    }
}
