//! The conversation with one who has the words.

use kith_object::time::Time;

use super::super::ANSWER_MAX;
use super::super::message::{Declined, Gather, Guide, kind, pieces};
use super::{Admitter, Effect, Knock, Step, Visit};

impl Admitter {
    pub(super) fn guide(&mut self, now: Time, knock: Knock, guide: &Guide) {
        let Some(visit) = self.visits.get_mut(&knock) else {
            return;
        };
        if !matches!(visit.step, Step::Proved) {
            return;
        }
        let Ok(content) = guide.encode() else {
            self.decline(knock, Declined::Failed);
            return;
        };
        visit.deadline = now + ANSWER_MAX;
        visit.step = Step::Guided {
            admission: Gather::admission(),
        };
        for message in pieces(kind::GUIDE, &content) {
            self.effects.push_back(Effect::Send { knock, message });
        }
    }

    pub(super) fn stored(&mut self, knock: Knock) {
        let storing = |visit: &Visit| matches!(visit.step, Step::Storing);
        if self.visits.get(&knock).is_some_and(storing) {
            self.visits.remove(&knock);
            self.send(knock, vec![kind::STORED]);
            self.effects.push_back(Effect::Close { knock });
        }
    }

    pub(super) fn failed(&mut self, knock: Knock) {
        let asked = |visit: &Visit| matches!(visit.step, Step::Proved | Step::Storing);
        if self.visits.get(&knock).is_some_and(asked) {
            self.decline(knock, Declined::Failed);
        }
    }
}
