//! The rules in force: those of the configuration, which only it changes, and those added at run time, which are saved.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::spawn_blocking;

use crate::config::{AllowRule, Config, Inbound, Policy, Protocol};
use crate::control::message::{Failure, FirewallMatch, FirewallProtocol, FirewallRule};
use crate::engine::Handle;
use crate::proto::node::Command;
use crate::proto::policy::{self, RULES_MAX, Rule, Rules};
use crate::store::StateDir;

use super::Error;

/// All rules, and where they are saved.
pub(super) struct Firewall {
    state: Arc<StateDir>,
    held: Mutex<Held>,
    /// One change at a time: what is saved, listed and enforced never differs for longer than a change takes.
    changing: tokio::sync::Mutex<()>,
}

struct Held {
    inbound: Inbound,
    configured: Vec<(u32, AllowRule)>,
    added: Vec<(u32, AllowRule)>,
    next_index: u32,
    handle: Option<Handle>,
}

/// What adding a rule takes.
enum Planned {
    /// Nothing: it is saved, under this number.
    Known(u32),
    /// Saving these lines first.
    Save(Vec<String>),
}

impl Firewall {
    /// Rules of the configuration and those saved.
    ///
    /// # Errors
    /// When the saved rules cannot be read: they are not guessed at.
    pub(super) fn load(config: &Config, state: Arc<StateDir>) -> Result<Self, Error> {
        let mut held = Held {
            inbound: config.policy.inbound,
            configured: Vec::new(),
            added: Vec::new(),
            next_index: 1,
            handle: None,
        };
        held.configure(&config.policy);
        for (i, text) in state.load_rules()?.iter().enumerate() {
            let rule = text.parse().map_err(|cause: crate::config::InvalidValue| Error::Rules {
                path: state.path().join("firewall").display().to_string(),
                line: i + 1,
                cause: cause.to_string(),
            })?;
            held.add(rule);
        }
        Ok(Self { state, held: Mutex::new(held), changing: tokio::sync::Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the node of changes from now on.
    pub(super) fn attach(&self, handle: Handle) {
        self.held().handle = Some(handle);
    }

    /// What the data path enforces.
    pub(super) fn rules(&self) -> Rules {
        self.held().rules()
    }

    /// What happens to flows that no rule names; may change while running.
    pub(super) fn inbound(&self) -> Inbound {
        self.held().inbound
    }

    /// Number of a rule that lets everything in.
    pub(super) fn open_rule(&self) -> Option<u32> {
        self.held().all().find(|(_, rule)| rule.is_open()).map(|(index, _)| *index)
    }

    /// The rules as listed.
    pub(super) fn list(&self) -> Vec<FirewallRule> {
        let held = self.held();
        let mut rules: Vec<_> = held.all().map(|(index, rule)| listed(*index, rule)).collect();
        rules.sort_by_key(|rule| rule.index);
        rules
    }

    /// Takes over the rules of a changed configuration.
    pub(super) async fn configure(&self, policy: &Policy) {
        let _turn = self.changing.lock().await;
        self.held().configure(policy);
        self.enforce().await;
    }

    /// Saves a rule, then puts it into force. An error leaves everything as it was.
    pub(super) async fn add(self: Arc<Self>, matches: FirewallMatch) -> Result<FirewallRule, Failure> {
        let rule = AllowRule::new(matches.peer, matches.proto.map(from_wire), matches.port)
            .map_err(|e| Failure::new(e.to_string(), "see azora firewall add --help"))?;
        to_the_end(async move {
            let _turn = self.changing.lock().await;
            let lines = match self.held().lines_with(&rule)? {
                Planned::Known(index) => return Ok(listed(index, &rule)),
                Planned::Save(lines) => lines,
            };
            self.save(lines).await?;
            let index = self.held().add(rule);
            self.enforce().await;
            Ok(listed(index, &rule))
        })
        .await
    }

    /// Saves the rules without one that was added at run time, then puts that out of force. An error leaves
    /// everything as it was.
    pub(super) async fn remove(self: Arc<Self>, index: u32) -> Result<(), Failure> {
        to_the_end(async move {
            let _turn = self.changing.lock().await;
            let lines = self.held().lines_without(index)?;
            self.save(lines).await?;
            self.held().remove(index);
            self.enforce().await;
            Ok(())
        })
        .await
    }

    /// Away from the runtime's only thread, since the disk may take its time.
    async fn save(&self, lines: Vec<String>) -> Result<(), Failure> {
        let state = self.state.clone();
        let saved = spawn_blocking(move || state.save_rules(&lines).map_err(|e| e.to_string())).await;
        saved.unwrap_or_else(|e| Err(e.to_string())).map_err(|cause| {
            Failure::new(
                format!("the rules stay as they were, since they cannot be saved: {cause}"),
                "mend that, then try again",
            )
        })
    }

    async fn enforce(&self) {
        let (handle, rules) = {
            let held = self.held();
            (held.handle.clone(), held.rules())
        };
        if let Some(handle) = handle {
            // A node that has stopped lets nothing in at all.
            let _ = handle
                .with(move |node, now, wall| node.handle_command(now, wall, Command::SetRules(rules)))
                .await;
        }
    }
}

impl Held {
    /// Each rule once, also one that is configured and added.
    fn all(&self) -> impl Iterator<Item = &(u32, AllowRule)> {
        let only_added = |(index, _): &&(u32, AllowRule)| !self.configured.iter().any(|(i, _)| i == index);
        self.configured.iter().chain(self.added.iter().filter(only_added))
    }

    fn configure(&mut self, policy: &Policy) {
        self.inbound = policy.inbound;
        let before = mem::take(&mut self.configured);
        for rule in &policy.allow {
            let index = self.index(rule, &before);
            if !self.configured.iter().any(|(i, _)| *i == index) {
                self.configured.push((index, *rule));
            }
        }
    }

    /// Equal rules have one number, wherever they come from and whatever is loaded again.
    fn index(&mut self, rule: &AllowRule, before: &[(u32, AllowRule)]) -> u32 {
        let mut known = before.iter().chain(&self.configured).chain(&self.added);
        if let Some((index, _)) = known.find(|(_, known)| known == rule) {
            return *index;
        }
        let index = self.next_index;
        self.next_index += 1;
        index
    }

    fn add(&mut self, rule: AllowRule) -> u32 {
        let index = self.index(&rule, &[]);
        self.added.push((index, rule));
        index
    }

    fn remove(&mut self, index: u32) {
        self.added.retain(|(i, _)| *i != index);
    }

    /// What to save for one more rule.
    fn lines_with(&self, rule: &AllowRule) -> Result<Planned, Failure> {
        if let Some((index, _)) = self.added.iter().find(|(_, known)| known == rule) {
            return Ok(Planned::Known(*index));
        }
        if self.all().filter(|(_, known)| known != rule).count() >= RULES_MAX {
            let next = "remove one first: azora firewall list, azora firewall remove N";
            return Err(Failure::new(format!("there are {RULES_MAX} rules already"), next));
        }
        let rules = self.added.iter().map(|(_, rule)| rule).chain([rule]);
        Ok(Planned::Save(rules.map(ToString::to_string).collect()))
    }

    /// What to save for one rule less.
    fn lines_without(&self, index: u32) -> Result<Vec<String>, Failure> {
        if self.configured.iter().any(|(i, _)| *i == index) {
            let next = "remove it from [policy] allow in the file, then send the daemon SIGHUP";
            return Err(Failure::new(format!("rule {index} comes from the configuration"), next));
        }
        if !self.added.iter().any(|(i, _)| *i == index) {
            let next = "azora firewall list shows the rules and their numbers";
            return Err(Failure::new(format!("there is no rule {index}"), next));
        }
        Ok(self.added.iter().filter(|(i, _)| *i != index).map(|(_, rule)| rule.to_string()).collect())
    }

    fn rules(&self) -> Rules {
        let allow = self.all().map(|(_, rule)| enforced(rule)).collect();
        Rules { allow_all: self.inbound == Inbound::Allow, allow, ..Rules::default() }
    }
}

/// Carries a change out even when nobody waits for it any more: what was saved is put into force too.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(Failure::new(error.to_string(), "look at the daemon's log")))
}

fn enforced(rule: &AllowRule) -> Rule {
    let protocol = rule.proto.map(|proto| match proto {
        Protocol::Tcp => policy::Protocol::Tcp,
        Protocol::Udp => policy::Protocol::Udp,
        Protocol::Icmp => policy::Protocol::Icmp,
    });
    Rule { protocol, port: rule.port, peer: rule.peer }
}

fn listed(index: u32, rule: &AllowRule) -> FirewallRule {
    let proto = rule.proto.map(|proto| match proto {
        Protocol::Tcp => FirewallProtocol::Tcp,
        Protocol::Udp => FirewallProtocol::Udp,
        Protocol::Icmp => FirewallProtocol::Icmp,
    });
    FirewallRule { index, matches: FirewallMatch { proto, port: rule.port, peer: rule.peer } }
}

const fn from_wire(proto: FirewallProtocol) -> Protocol {
    match proto {
        FirewallProtocol::Tcp => Protocol::Tcp,
        FirewallProtocol::Udp => Protocol::Udp,
        FirewallProtocol::Icmp => Protocol::Icmp,
    }
}
